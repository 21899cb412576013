"""An auth file for tests: a token for each right, and tokens for models by pattern."""

import hashlib
from pathlib import Path

RIGHTS = ("infer", "read", "control", "shared-memory", "metrics", "admin")

GROUPS = """
[groups.infer]
infer = ["*"]
[groups.read]
rights = ["read"]
[groups.control]
rights = ["control"]
[groups.shared-memory]
rights = ["shared-memory"]
[groups.metrics]
rights = ["metrics"]
[groups.admin]
rights = ["admin"]
[groups.digits]
infer = ["digits"]
[groups.others]
infer = ["team-?-*"]
[groups.patient]
infer = ["*"]
priority = 2
"""

NAMES = (*RIGHTS, "digits", "others", "patient")


def token(name: str) -> str:
    """The text of a token. Those of the file are not random, so that a test can name them."""
    return f"convoy_{name}"


def entry(name: str, group: str = "", **more: str) -> str:
    """A token in the file; `more` are keys with their values as TOML."""
    sha256 = hashlib.sha256(token(name).encode()).hexdigest()
    lines = [f'name = "{name}"', f'group = "{group or name}"', f'sha256 = "{sha256}"']
    return "\n".join(["[[tokens]]", *lines, *(f"{key} = {value}" for key, value in more.items()), ""])


def write_auth_file(path: Path, *entries: str) -> Path:
    """Writes the groups, a token for each of NAMES, and more entries."""
    path.write_text("\n".join([*map(entry, NAMES), *entries, GROUPS]))
    return path


def bearer(name: str) -> str:
    """The header's value."""
    return f"Bearer {token(name)}"


def metadata(name: str | None) -> list[tuple[str, str]]:
    """The metadata of a gRPC call; none without a name."""
    return [] if name is None else [("authorization", bearer(name))]
