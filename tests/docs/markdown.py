"""Markdown documents, as the tests need them: fenced blocks, anchors, links, code spans, tables."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("service", "export", "protos", "tests", "deploy")
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(path for each in FOLDERS for path in (ROOT / each).rglob("*.md"))]
)
GENERATED = {"service/CONFIGURATION.md"}

_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.M | re.S)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines, and where it begins in the document."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Document:
    """A document; `prose` is what is left of it without the fenced blocks."""

    path: Path
    text: str
    prose: str

    @property
    def blocks(self) -> list[Block]:
        return [Block(m[1], m[2], self.text[: m.start()].count("\n") + 1) for m in _FENCE.finditer(self.text)]

    @property
    def anchors(self) -> set[str]:
        """As GitHub makes them of headings."""
        found: list[str] = []
        for heading in _HEADING.findall(self.prose):
            slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
        return set(found)

    @property
    def links(self) -> list[str]:
        return _LINK.findall(_SPAN.sub("", self.prose))

    @property
    def spans(self) -> list[str]:
        return _SPAN.findall(self.prose)

    @property
    def tables(self) -> list[list[str]]:
        """The lines of each table."""
        return [match[0].strip().splitlines() for match in re.finditer(r"(?:^\|.*\n)+", self.prose, re.M)]


def read(name: str) -> Document:
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    return Document(path, text, _FENCE.sub("", text))
