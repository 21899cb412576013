"""A picture that is written gets its name only when it is whole, and never the name of another file."""

import contextlib
import os
from hashlib import blake2b
from pathlib import Path

from service.bulk.pictures import key_of


def put(content: bytes, target: Path, beside: Path) -> bool:
    """Makes a file of this content `beside` its place, and gives it its name; False if a file of another content has that.

    What a kill leaves `beside` it, the next call removes. Raises OSError.
    """
    try:
        if os.path.lexists(target):
            return _has(target, content)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return renamed(beside, target)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def beside_of(target: Path, name: str) -> Path:
    """Where a picture of this name is made before it has its own."""
    return target.with_name(f".{digest_of(name)}.part")


def digest_of(name: str) -> str:
    """Of a picture, however its path is spelled."""
    return blake2b(key_of(name).encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def renamed(beside: Path, target: Path) -> bool:
    """Gives a whole file its name, unless another has it."""
    try:
        os.link(beside, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            target.open("xb").close()
        except FileExistsError:
            return False
        beside.replace(target)
    return True


def _has(target: Path, content: bytes) -> bool:
    try:
        return target.stat().st_size == len(content) and target.read_bytes() == content
    except OSError:
        return False
