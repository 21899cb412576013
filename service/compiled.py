"""Whether the modules of every request are C extensions, made by mypyc (pyproject.toml, `tool.convoy`), or pure Python.

Extensions that lie beside their sources, after `make compiled`, win over them at import. Sources that have changed since would go
unseen, so the build writes the digests of what it compiled into `compiled.sha256`, and `import service` compares them. An installed
wheel has no such file.
"""

import hashlib
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

STAMP = Path(__file__).with_name("compiled.sha256")


def check_fresh(stamp: Path = STAMP) -> None:
    """Raises ImportError if a module has changed since it was compiled in place."""
    for line in stamp.read_text().splitlines():
        digest, _, name = line.partition("  ")
        source = stamp.parent / name
        if not source.exists() or hashlib.sha256(source.read_bytes()).hexdigest() != digest:
            raise ImportError(f"{source} has changed since it was compiled: run `make compiled` again, or `make pure`")


def build() -> str:
    """`compiled` or `pure Python`."""
    spec = find_spec("service.rpc.wire")  # found without importing it
    compiled = spec is not None and str(spec.origin).endswith(tuple(EXTENSION_SUFFIXES))
    return "compiled" if compiled else "pure Python"
