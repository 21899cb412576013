"""Requests in batches through ONNX Runtime: queue, batcher, repository, classifier."""
