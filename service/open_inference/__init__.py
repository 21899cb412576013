"""The Open Inference Protocol apart from its transport: tensors, metadata, shared memory."""
