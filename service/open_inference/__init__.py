"""The Open Inference Protocol, for gRPC and REST alike: tensors, parameters, queries, metadata, shared memory."""
