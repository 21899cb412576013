"""Convoy's server and client: an ONNX classifier answered over gRPC in batches."""

DISTRIBUTION = "convoy-serving"
"""The name of the installed package; `convoy` on PyPI is another project's."""


def convoy_version() -> str:
    """The version of the installed package."""
    from importlib.metadata import version  # not at import: clients do not need it

    return version(DISTRIBUTION)
