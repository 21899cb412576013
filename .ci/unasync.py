"""Generates sync.py and sync_many.py of service/client from aio.py and aio_many.py, or with --check says whether they are fresh."""

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parent.parent / "service" / "client"
SUBSTITUTIONS = (
    (r"\bIterable\[(\w+)\] \| AsyncIterable\[\1\]", r"Iterable[\1]"),
    (r"\bIterable \| AsyncIterable\b", "Iterable"),
    (r"\bclient\.aio_many\b", "client.sync_many"),
    (r"\bAsyncGenerator\[(.+), None\]", r"Generator[\1, None, None]"),
    (r"\basynchronous\(([\w.]+)\)", r"\1"),
    (r"\bgrpc\.aio\b", "grpc"),
    ("an `async with`", "a `with`"),
    (r"\basync (?=def|with|for)", ""),
    (r"\bawait ", ""),
    (r"\bAsync(?=[A-Z])", ""),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"(?m)^( *)# sync: ", r"\1"),
)


FILES = {
    "aio.py": ("sync.py", "The synchronous client"),
    "aio_many.py": ("sync_many.py", "The I/O of `classify_many`, with threads"),
}


def synchronous(name: str) -> str:
    target, title = FILES[name]
    source = (CLIENT / name).read_text()
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
    text = re.sub(r'\A""".*?"""', f'"""{title}. Generated from {name} by `make sync-client`: edit that."""', text, flags=re.DOTALL)
    for pattern, replacement in SUBSTITUTIONS:
        text = re.sub(pattern, replacement, text)
    for command in (["check", "--quiet", "--select", "I,F401", "--fix"], ["format", "--quiet"]):
        arguments = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(CLIENT / target), "-"]
        text = subprocess.run(arguments, input=text, capture_output=True, text=True, check=True).stdout  # noqa: S603 - ruff, of this environment
    return text


def main() -> None:
    everything = "".join((CLIENT / name).read_text() for name in FILES)
    for pattern, _ in SUBSTITUTIONS:
        if not re.search(pattern, everything):
            sys.exit(f".ci/unasync.py: {pattern!r} is in no source any more")
    for name, (target, _) in FILES.items():
        fresh = synchronous(name)
        if "--check" not in sys.argv:
            (CLIENT / target).write_text(fresh)
        elif (CLIENT / target).read_text() != fresh:
            sys.exit(f"stale, run `make sync-client`: service/client/{target}")


main()
