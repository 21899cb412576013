"""What the documents refer to exists: files, anchors, flags, targets, metrics; and they render as they should."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

from service import cli
from tests.docs import commands, markdown
from tests.docs.markdown import GENERATED, ROOT

MANUALS = [
    "README.md", "CONTRIBUTING.md", "SECURITY.md", "service/README.md", "service/client/README.md", "export/README.md",
    "protos/README.md", "tests/README.md",
]  # fmt: skip
OF_READERS = re.compile(r"(models|run|tour|report|photos|DIR|RUN)/.*|.*[<*].*|\w+\.[\w.]+/\w+")
"""Paths that are not in the repository: what commands make, what readers have, patterns; and gRPC's methods."""
READERS_FILES = {
    "serving.toml", "auth.toml", "labels.txt", "model.onnx", "digit.png", "index.html", "metrics.jsonl", "checkpoint.pt",
    "curves.png", "scores.json", "list.txt", "sitecustomize.py", "config.json", "preprocessor_config.json",
}  # fmt: skip
OTHERS_FLAGS = {
    "--build-arg", "--target", "--nproc-per-node", "--resolution", "-plaintext", "--set", "--install", "--previous",
}  # fmt: skip
_FILE = re.compile(r"[\w./{}<>-]+\.(?:py|md|toml|txt|json|jsonl|ya?ml|proto|onnx|pt|png|html|js|cfg|lock)|[\w.-]+/[\w./<>-]*")
_DEFINED = re.compile(r"`([A-Za-z_][\w.]*)`\s+(?:(?:in|of)\s+|\()`([\w/]+\.py)`")
_FLAG = re.compile(r"--[a-z]+(?:-[a-z]+)*(?![a-z<-])")


def _flags() -> set[str]:
    context = click.Context(cli.program)
    loaded = [cli.program.get_command(context, name) for name in cli.program.list_commands(context)]
    within = [command for group in loaded if isinstance(group, click.Group) for command in group.commands.values()]
    return {
        flag
        for command in (*loaded, *within)
        if command
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }


FLAGS = _flags() | OTHERS_FLAGS | {"--help", "--version"}
SOURCES = "".join(
    path.read_text()
    for folder in ("service", "export", "deploy")
    for path in (ROOT / folder).rglob("*.*")
    if path.suffix in (".py", ".yaml", ".html")
)
FILES = {path.name for folder in ("service", "export", "deploy", "protos", "tests", ".ci") for path in (ROOT / folder).rglob("*")}

MAX_LINE = 132
HISTORY = {"CHANGELOG.md", "tests/benchmarks/HISTORY.md"}
"""What was true when it was written: their links must lead somewhere, the names in them need not be today's."""
document = pytest.mark.parametrize("name", markdown.DOCUMENTS)
manual = pytest.mark.parametrize("name", sorted({*markdown.DOCUMENTS} - HISTORY))


@document
def test_links_lead_somewhere(name: str) -> None:
    for link in markdown.read(name).links:
        url = urlsplit(link)
        if url.scheme:
            assert re.fullmatch(r"https?://([\w.-]+\.[a-z]+|127\.0\.0\.1:\d+)(/[^\s<>]*)?", link), link
            continue
        path = (ROOT / name).parent / url.path if url.path else ROOT / name
        if str(path.resolve().relative_to(ROOT)) in GENERATED:
            continue
        assert path.exists(), link
        if url.fragment:
            assert url.fragment in markdown.read(str(path.resolve().relative_to(ROOT))).anchors, link


def _places(name: str, file: str) -> list[Path]:
    """Where a file may be that a document names: beside it, in the repository, in a package."""
    return list(dict.fromkeys([(ROOT / name).parent / file, ROOT / file, ROOT / "service" / file, ROOT / "export" / file]))


@manual
def test_what_is_named_exists(name: str) -> None:
    for span in markdown.read(name).spans:
        for flag in _FLAG.findall(span) if not span.startswith(("kubectl", "docker", "helm", "git")) else ():
            assert flag in FLAGS or "tests.benchmarks" in span, f"{flag} in `{span}`"
        if target := re.match(r"make ([a-z-]+)", span):
            assert target[1] in commands.MAKE_TARGETS, span
        if re.fullmatch(r"convoy_[a-z_]+|CONVOY_[A-Z_]+[A-Z]", span):
            assert span in SOURCES or f"--{span.removeprefix('CONVOY_').lower().replace('_', '-')}" in FLAGS, span
        if _FILE.fullmatch(span) and not OF_READERS.fullmatch(span) and span not in READERS_FILES:
            assert any(place.exists() for place in _places(name, span)) or span in FILES | GENERATED, f"there is no {span}"


@manual
def test_what_is_said_to_be_in_a_file_is_defined_there(name: str) -> None:
    """Of the forms: `name` in `file.py`, `name` of `file.py`, `name` (`file.py`)."""
    for defined, file in _DEFINED.findall(markdown.read(name).prose):
        [found] = [place for place in _places(name, file) if place.exists()]
        last = defined.rpartition(".")[2]
        assert re.search(rf"(def|class) {last}\b|^\s*{last}\b.* = |^@?\s*{last}: ", found.read_text(), re.M), f"{defined} in {file}"


@document
def test_tables_have_as_many_cells_in_each_row(name: str) -> None:
    for table in markdown.read(name).tables:
        cells = [len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", line))) for line in table]
        assert len(set(cells)) == 1, table[0]


def test_every_dependency_has_its_reason() -> None:
    extras = commands.PROJECT["optional-dependencies"].values()
    wanted = {
        re.split(r"[^\w-]", each)[0] for each in [*commands.PROJECT["dependencies"], *(one for extra in extras for one in extra)]
    }
    known = set(
        re.findall(
            r"[\w-]+",
            "".join(
                line.split("|")[1]
                for line in next(table for table in markdown.read("CONTRIBUTING.md").tables if "onnxruntime" in str(table))
            ),
        )
    )
    assert {package for package in wanted if not package.startswith("types-")} - known == {commands.PROJECT["name"]}


@pytest.mark.parametrize("name", MANUALS)
def test_lines_are_not_too_long_to_read_as_text(name: str) -> None:
    prose = [line for line in markdown.read(name).prose.splitlines() if not line.startswith("|")]
    assert [line for line in prose if len(line) > MAX_LINE] == []


def test_every_part_has_its_manual_and_the_first_is_short() -> None:
    assert set(MANUALS) <= set(markdown.DOCUMENTS)
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_what_is_missing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "ROOT", tmp_path)
    for number, text in enumerate(["[a](none.md)", "[a](0.md#none)", "[a](http:/x)"]):
        (tmp_path / f"{number}.md").write_text(text)
        monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
        with pytest.raises(AssertionError):
            test_links_lead_somewhere(f"{number}.md")
    for text in ("`--no-such-flag`", "`make nothing`", "`service/none.py`", "`convoy_nothing_total`", "`CONVOY_NOTHING`"):
        (tmp_path / "named.md").write_text(text)
        with pytest.raises(AssertionError):
            test_what_is_named_exists("named.md")
