"""From a checkpoint to a version in a repository: ONNX, quantisation, model card, publishing."""
