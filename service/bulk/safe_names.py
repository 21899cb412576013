"""Folder and file names made of labels and of names in archives and URLs, which strangers choose."""

import re
import unicodedata
from collections.abc import Sequence

_MAX_BYTES = 200
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Of Windows."""


def safe_name(name: str) -> str:
    """A name for a file or a folder on any system: never empty, `.` or `..`, without a slash, at most 200 bytes."""
    text = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode())
    text = _UNSAFE.sub("_", text).strip()
    if text.startswith("."):
        text = f"_{text}"
    text = text.rstrip(". ")
    if _RESERVED.fullmatch(text):
        text = f"_{text}"
    stem, dot, suffix = text.rpartition(".")
    if len(text.encode()) > _MAX_BYTES:
        keep = dot + suffix if stem and len(suffix.encode()) <= 10 else ""
        text = text.encode()[: _MAX_BYTES - len(keep.encode())].decode(errors="ignore").rstrip(". ") + keep
    return text or "_"


def folder_names(labels: Sequence[str], reserved: str) -> dict[str, str]:
    """A folder for each label. No two are the same where upper and lower case are, and none is `reserved`."""
    taken = {reserved.casefold()}
    folders: dict[str, str] = {}
    for label in labels:
        if label in folders:
            continue
        name = safe_name(label)
        folder, number = name, 1
        while folder.casefold() in taken:
            number += 1
            folder = f"{name}_{number}"
        taken.add(folder.casefold())
        folders[label] = folder
    return folders
