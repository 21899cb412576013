"""Convoy's server: an ONNX classifier answered over gRPC in batches."""
