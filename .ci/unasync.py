"""Generates service/client/sync.py from aio.py, or with --check says whether it is fresh (exit code 1 if not)."""

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parent.parent / "service" / "client"
SUBSTITUTIONS = (
    (r'\A""".*?"""', '"""The synchronous client. Generated from aio.py by `make sync-client`: edit that."""'),
    (r"\bIterable\[Images\] \| AsyncIterable\[Images\]", "Iterable[Images]"),
    (r"\bAsyncGenerator\[(.+), None\]", r"Generator[\1, None, None]"),
    (r"_asynchronous\((\w+)\)", r"\1"),
    (r"\bgrpc\.aio\b", "grpc"),
    ("an `async with`", "a `with`"),
    (r"\basync (?=def|with|for)", ""),
    (r"\bawait ", ""),
    (r"\bAsync(?=[A-Z])", ""),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"(?m)^( *)# sync: ", r"\1"),
)


def synchronous(source: str) -> str:
    lines: list[str] = []
    dropped: int | None = None  # indentation of the line whose block is being left out
    for line in source.splitlines(keepends=True):
        indentation = len(line) - len(line.lstrip())
        if dropped is not None and (not line.strip() or indentation > dropped):
            continue
        dropped = indentation if line.rstrip().endswith("# asyncio only") else None
        if dropped is None:
            lines.append(line)
    text = "".join(lines)
    for pattern, replacement in SUBSTITUTIONS:
        text, count = re.subn(pattern, replacement, text, flags=re.DOTALL if pattern.startswith(r"\A") else 0)
        if not count:
            sys.exit(f".ci/unasync.py: {pattern!r} is not in aio.py any more")
    for command in (["check", "--quiet", "--select", "I,F401", "--fix"], ["format", "--quiet"]):
        arguments = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(CLIENT / "sync.py"), "-"]
        text = subprocess.run(arguments, input=text, capture_output=True, text=True, check=True).stdout  # noqa: S603 - ruff, of this environment
    return text


def main() -> None:
    target = CLIENT / "sync.py"
    fresh = synchronous((CLIENT / "aio.py").read_text())
    if "--check" not in sys.argv:
        target.write_text(fresh)
    elif target.read_text() != fresh:
        sys.exit("stale, run `make sync-client`: service/client/sync.py")


main()
