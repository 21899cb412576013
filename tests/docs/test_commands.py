"""Every command and example in the documents runs, in the order in which they stand there, as a reader would run them."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from export.data.datasets import Dataset
from service.access.auth_file import parse_auth_file
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.policy import Policy
from tests.docs import commands, markdown
from tests.docs.markdown import ROOT, Block

CLIENTS = ROOT / ".venv" / "clients" / "bin" / "python"
FIRST = "README.md"
"""Its commands make what those of the other documents go on with: run/, models/digits, digit.png."""
LONG = {FIRST, "export/README.md", "service/README.md"}
"""They train, export and serve: `make test-system` follows them."""
NAMES = {"NAMESPACE": "convoy", "POD": "convoy-0"}
"""What the documents call what only a reader has."""


class Sandbox:
    """A folder that looks like a clone, in which the blocks of one document run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "clone"
        programs = self.folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        for name in ("deploy", "export", "protos", "service", "tests", "Makefile", "pyproject.toml"):
            (self.folder / name).symlink_to(ROOT / name)
        for name in commands.SYSTEM:
            (programs / name).symlink_to(str(shutil.which(name, path=os.defpath)))
        for name in commands.COMMANDS:
            (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.docs.commands {name} "$@"\n')
            (programs / name).chmod(0o755)
        (programs / "activate").touch()
        self.environment = {**NAMES, "PATH": str(programs), "PYTHONPATH": str(ROOT)}

    def run(self, *command: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd=self.folder, env={**os.environ, **self.environment}, text=True, timeout=120, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def bash(self, script: str) -> "subprocess.CompletedProcess[str]":
        return self.run("/bin/bash", "--noprofile", "--norc", "-euo", "pipefail", "-c", script)


def check_sh(sandbox: Sandbox, block: Block) -> None:
    """All commands succeed."""
    done = sandbox.bash(block.text)
    assert done.returncode == 0, done.stdout
    assert "command not found" not in done.stdout


def check_console(sandbox: Sandbox, block: Block) -> None:
    """Each line after `$ ` prints the lines below it, where `...` is any text; without such lines it succeeds."""
    for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
        command, _, expected = part.partition("\n")
        done = sandbox.bash(command)
        printed = done.stdout
        for name, port in commands.ports().items():
            printed = re.sub(rf":{port}\b", f":{name}", printed)
        pattern = ".*".join(map(re.escape, expected.strip().split("...")))
        right = re.fullmatch(pattern, printed.strip(), re.S) if expected.strip() else done.returncode == 0
        assert right, f"$ {command}\n{printed}"


def check_python(sandbox: Sandbox, block: Block) -> None:
    """A program that ends well; with warnings as errors, if it does not export from PyTorch, which warns of itself."""
    (sandbox.folder / "example.py").write_text(commands.with_ports(block.text))
    if "import tritonclient" in block.text:
        assert CLIENTS.exists(), "make clients"
        done = sandbox.run(CLIENTS, "example.py")
    else:
        warnings = "default" if "torch.onnx" in block.text else "error"
        done = sandbox.run(sys.executable, "-W", warnings, "example.py")
    assert done.returncode == 0, done.stdout


def check_toml(sandbox: Sandbox, block: Block) -> None:
    """A `serving.toml`, or a file of `--auth` that its first line names: saved for the commands that follow."""
    if block.text.startswith("# auth.toml"):
        (sandbox.folder / "auth.toml").write_text(block.text)
        parse_auth_file(Path("auth.toml"), block.text.encode())
        return
    Policy.model_validate(tomllib.loads(block.text))


def check_js(sandbox: Sandbox, block: Block) -> None:
    """Saved by the name in its first line, for the commands that follow; its fields and methods are the API's."""
    name = re.match(r"// (\S+\.js)\n", block.text)
    assert name is not None, "the first line names the file"
    (sandbox.folder / name[1]).write_text(commands.with_ports(block.text))
    keys = set(re.findall(r"\b([a-z]\w*): ", block.text)) - {"keepCase", "deadline"}
    assert keys <= FIELDS, keys - FIELDS
    assert set(re.findall(r"client\.(\w+)\(", block.text)) <= METHODS | {"close"}


def check_go(sandbox: Sandbox, block: Block) -> None:
    """Its messages, fields and methods are those that protoc-gen-go makes of the API."""
    camel = {field.title().replace("_", "") for field in FIELDS}
    wrappers = {f"Item_{field.name.title()}" for field in pb.Item.DESCRIPTOR.fields}
    assert set(re.findall(r"pb\.(\w+)", block.text)) <= MESSAGES | wrappers | {"NewClassifierClient"}
    assert set(re.findall(r"\b([A-Z]\w*): ", block.text)) | set(re.findall(r"\.Get(\w+)\(\)", block.text)) <= camel | {"Content"}
    assert set(re.findall(r"client\.(\w+)\(", block.text)) <= METHODS


def check_json(sandbox: Sandbox, block: Block) -> None:
    json.loads(block.text)


MESSAGES = set(pb.DESCRIPTOR.message_types_by_name)
FIELDS = {field.name for message in pb.DESCRIPTOR.message_types_by_name.values() for field in message.fields}
METHODS = set(pb.DESCRIPTOR.services_by_name["Classifier"].methods_by_name)

CHECKS: dict[str, Callable[[Sandbox, Block], None]] = {
    "sh": check_sh, "console": check_console, "python": check_python, "toml": check_toml, "js": check_js, "go": check_go,
    "json": check_json, "text": lambda sandbox, block: None,
}  # fmt: skip
"""By a block's language; text is what is shown."""


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    (tmp_path / "state").mkdir()
    monkeypatch.setenv("DOCS_STATE", str(tmp_path / "state"))
    yield Sandbox(tmp_path)
    commands.stop()


def furnish(sandbox: Sandbox, name: str, run: Path, model_file: Path, digits: Dataset) -> None:
    """What a document starts with: a reader's own pictures, and what the commands of FIRST leave behind."""
    for label, animal in enumerate(("cat", "dog")):
        (sandbox.folder / "photos" / animal).mkdir(parents=True)
        for number in np.flatnonzero(digits.test.labels == label):
            (sandbox.folder / "photos" / animal / f"{number}.png").write_bytes(digits.test.encoded(int(number)))
    if name != FIRST:
        shutil.copytree(run, sandbox.folder / "run")
        shutil.copytree(model_file.parents[1], sandbox.folder / "models" / "digits")
        (sandbox.folder / "digit.png").write_bytes(digits.test.encoded(0))


def follow(name: str, sandbox: Sandbox) -> None:
    """Runs a document's blocks."""
    for block in markdown.read(name).blocks:
        assert block.language in CHECKS, f"{name}:{block.line}: nothing checks ```{block.language}"
        try:
            CHECKS[block.language](sandbox, block)
        except AssertionError as error:
            raise AssertionError(f"{name}:{block.line}\n{block.text}\n{error}") from None


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.system if name in LONG else ())
        for name in markdown.DOCUMENTS
        if markdown.read(name).blocks
    ],
)
def test_a_document_works_from_its_first_command_to_its_last(
    name: str, sandbox: Sandbox, run: Path, model_file: Path, digits: Dataset
) -> None:
    furnish(sandbox, name, run, model_file, digits)
    follow(name, sandbox)


@pytest.mark.system
@pytest.mark.timeout(300)
def test_the_example_in_javascript_runs(
    sandbox: Sandbox, run: Path, model_file: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCS_NODE", "runs")
    furnish(sandbox, "protos/README.md", run, model_file, digits)
    follow("protos/README.md", sandbox)


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (check_sh, "launch the-server\n"),
        (check_sh, "make nothing\n"),
        (check_sh, "convoy classify --tok-k 3 digit.png --model digits\n"),
        (check_sh, "kubectl get pods --no-such-flag\n"),
        (check_sh, "kubectl apply -k deploy/overlays/none\n"),
        (check_sh, "pip install convoy\n"),
        (check_sh, "grpcurl -plaintext 127.0.0.1:8001 list\n"),
        (check_sh, "convoy train --data mnist --epochs many --output run\n"),
        (check_sh, "helm install convoy deploy/chart --set image.nothing=1\n"),
        (check_console, "$ convoy serve nowhere\nconvoy: nowhere is fine\n"),
        (check_python, "import service.clients\n"),
        (check_toml, "max_batch = 3\n"),
        (check_js, "// client.js\nclient.Classify({ modell: 'digits' }, done)\n"),
        (check_go, "client.Classify(ctx, &pb.ClassifyRequest{Modell: \"digits\"})\n"),
    ],
)  # fmt: skip
def test_what_does_not_work_is_found(check: Callable[[Sandbox, Block], None], text: str, sandbox: Sandbox) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check(sandbox, Block("", text, 1))
