"""A picture to be classified, its name, and what is left out of folders and archives."""

import os
import re
import urllib.parse
from collections import Counter
from typing import NamedTuple

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
    ".avifs", ".heic", ".heif", ".hif",
)  # fmt: skip
"""Of the formats that are served. Other files in a folder or an archive are left out; one that is named itself is taken."""

MAX_PICTURE_BYTES = 128 << 20
"""Of a picture in an archive or at a URL, which is held in memory; servers take 100 MB by default."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


class Picture(NamedTuple):
    """A picture, or what is wrong with it.

    `name` is its path in the output. `image` is the path of a file or the bytes of one; None if there is an `error`.
    """

    name: str
    image: str | bytes | None
    error: str = ""

    @property
    def path(self) -> str | None:
        """Of the file on this machine; None for a picture in an archive or at a URL."""
        return self.image if isinstance(self.image, str) else None


class LeftOut:
    """Counts what a folder or an archive holds that is not classified."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def takes(self, name: str) -> bool:
        """Whether a file of this name in a folder or an archive is a picture; counts it if not."""
        if name.startswith("."):
            self.counts["hidden"] += 1
            return False
        if not name.lower().endswith(SUFFIXES):
            self.counts["no picture by their suffix"] += 1
            return False
        return True

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {what}" for what, count in self.counts.items())


def scheme(source: str) -> str:
    """The protocol of a URL, in lower case; empty for a path."""
    match = _SCHEME.match(source)
    return match[1].lower() if match is not None else ""


def name_of(path: str) -> str:
    """A path as it stands in the output, from which `path_of` makes it again.

    It is the path itself, with two exceptions. In front of = + - @ stands ./, so that no spreadsheet takes it for a formula. A path
    that is not UTF-8 is a file:// URL with its bytes in percent: no file of rows can hold it otherwise.
    """
    if path.startswith(("=", "+", "-", "@", "\t", "\r")):
        path = f"./{path}"
    if path.isascii() or _is_unicode(path):
        return path
    whole = path if scheme(path) else os.path.abspath(path)  # noqa: PTH100 - pathlib has no equivalent: resolve() follows links
    return "file://" + urllib.parse.quote_from_bytes(os.fsencode(whole))


def key_of(name: str) -> str:
    """What the names of one picture have in common, however it is given: the absolute path, without `.` and empty parts.

    `..` stays as it is: behind a link it may lead elsewhere.
    """
    path = path_of(name)
    return plain(path if scheme(path) or path.startswith("/") else f"{os.getcwd()}/{path}")  # noqa: PTH109


def plain(path: str) -> str:
    """A path without `.` and empty parts; a URL as it is."""
    if scheme(path) or not ("//" in path or "/." in path or path.startswith("./")):
        return path
    return ("/" if path.startswith("/") else "") + "/".join(part for part in path.split("/") if part not in ("", "."))


def path_of(source: str) -> str:
    """The path in a file:// URL; any other source as it is."""
    if scheme(source) != "file":
        return source
    return os.fsdecode(urllib.parse.unquote_to_bytes(source.partition("://")[2]))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
