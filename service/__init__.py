"""Convoy's server and client: an ONNX classifier answered over gRPC in batches."""

DISTRIBUTION = "convoy-serving"
"""The name of the installed package; `convoy` on PyPI is another project's."""
