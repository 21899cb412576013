"""From a checkpoint to a version in a model repository: ONNX, contract, lower precisions, model card, publishing."""
