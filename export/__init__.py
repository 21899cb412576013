"""Convoy's export stage: trains a PyTorch CNN and writes one self-describing ONNX file."""
