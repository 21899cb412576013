"""The wheel installed without extras, in an empty environment: the client and its commands, and no server."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from export.data.datasets import Dataset
from service.cli import EXTRAS
from tests.conftest import Serve

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / ".venv" / "wheels"
"""Where `make test-system` has put what the test installs, for machines without a network; without it, PyPI is asked."""


OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
"""An environment where nothing of this clone is on Python's path."""


def pip(*arguments: str | Path) -> None:
    found = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS)} if WHEELS.is_dir() else {}
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)],
        check=True, timeout=150, env=OUTSIDE | found,
    )  # fmt: skip


def installed(folder: Path) -> Path:
    """The `convoy` of a new environment that holds the wheel and what it depends on."""
    for name in ("service", "export"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "source" / ".ci").mkdir()
    for name in ("pyproject.toml", ".ci/build_backend.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    pip("wheel", "--no-deps", "--wheel-dir", folder, folder / "source")
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "environment")
    programs = folder / "environment" / "bin"
    pip("--python", programs / "python", "install", "--constraint", ROOT / ".ci" / "requirements.lock", wheel)
    return programs / "convoy"


def convoy(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the installed program."""
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=program.parent, env=OUTSIDE)


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize("transport_name", ["fast"])
def test_without_extras_classify_and_bench_work_and_serve_says_what_it_needs(
    repository: Path, serve: Serve, digits: Dataset, tmp_path: Path
) -> None:
    program = installed(tmp_path / "base")
    listed = convoy(program, "--help")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert re.search(r"^  serve +Not installed: needs the extra 'cpu'\.$", listed.stdout, re.M)
    for words in (["serve"], ["serve", "--help"], ["serve", "models", "--grpc-port", "0"]):
        refused = convoy(program, *words)
        assert refused.returncode == 2
        assert re.fullmatch(
            r"convoy: package '\w+' is missing: install Convoy's extra 'cpu', 'gpu' or 'cuda', one of the three "
            r"\(pip install 'convoy-serving\[cpu\]', in a clone '\.\[cpu\]'\)\n",
            refused.stderr,
        )

    server = serve(repository)
    at = ["--model", "digits", "--server", f"127.0.0.1:{server.grpc_port}", "--json"]
    picture = tmp_path / "digit.png"
    picture.write_bytes(digits.test.encoded(0))
    classified = convoy(program, "classify", picture, *at)
    assert classified.returncode == 0, classified.stderr
    assert json.loads(classified.stdout)["predictions"][0]["label"] == digits.labels[digits.test.labels[0]]
    metrics = f"http://127.0.0.1:{server.http_port}/metrics"
    for options in (["--processes", "2"], ["--encoding", "jpeg", "--rate", "50"], ["--image", str(picture), "--stream"]):
        measured = convoy(program, "bench", *at, "--seconds", "0.5", "--warmup", "0.1", "--metrics", metrics, *options)
        assert measured.returncode == 0, measured.stderr
        assert json.loads(measured.stdout)["server"], "the server's own figures"


def test_every_package_of_an_extra_is_known_by_its_module() -> None:
    """By a module's name, as it is missing, the command line says which extra brings it."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    modules: dict[str, set[str]] = {}
    for module, distributions in packages_distributions().items():
        for distribution in distributions:
            modules.setdefault(re.sub("[-_.]+", "-", distribution).lower(), set()).add(module)
    for extra, needed in {"cpu": "server", "export": "export", "tracing": "tracing"}.items():
        for requirement in extras[needed]:
            name = re.match(r"[A-Za-z0-9-]+", requirement)
            assert name is not None
            assert {EXTRAS.get(module) for module in modules[name[0]] if not module.startswith("_")} - {None} == {extra}, (
                requirement
            )
    assert EXTRAS["onnxruntime"] == "cpu"
