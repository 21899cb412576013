"""Which build is installed, and that modules compiled in place are never older than their sources."""

import hashlib
import importlib
import re
import shutil
import subprocess
import tomllib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service import compiled
from service.observability.metrics import Metrics

ROOT = Path(__file__).parents[2]
MODULES: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["convoy"]["compiled"]


def test_all_the_modules_of_the_list_are_compiled_or_none_is() -> None:
    extensions = {not str(importlib.import_module(name).__file__).endswith(".py") for name in MODULES}
    assert extensions == {compiled.build() == "compiled"}


def test_the_metrics_say_which_build_it_is() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    [build] = next(each for each in list(registry.collect()) if each.name == "convoy_build").samples
    assert build.labels["build"] == compiled.build()


def test_a_module_that_has_changed_since_it_was_compiled_is_refused(tmp_path: Path) -> None:
    source, stamp = tmp_path / "queue.py", tmp_path / "compiled.sha256"
    source.write_text("1")
    stamp.write_text(f"{hashlib.sha256(b'1').hexdigest()}  queue.py\n")
    compiled.check_fresh(stamp)
    source.write_text("2")
    with pytest.raises(ImportError, match=r"queue\.py has changed since it was compiled: run `make compiled`"):
        compiled.check_fresh(stamp)
    source.unlink()
    with pytest.raises(ImportError, match="has changed"):
        compiled.check_fresh(stamp)


def test_make_pure_leaves_nothing_of_a_compiled_build(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    suffix = EXTENSION_SUFFIXES[0]
    made = [
        f"service/rpc/wire{suffix}",
        f"service/old/gone{suffix}",
        f"convoy__mypyc{suffix}",
        "service/compiled.sha256",
        "build/wire.o",
    ]
    for name in [*made, "service/rpc/wire.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    subprocess.run(["make", "--silent", "pure"], check=True, timeout=30, cwd=tmp_path)
    assert sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*") if each.is_file()) == [
        "Makefile",
        "service/rpc/wire.py",
    ]
    assert re.search("^clean: pure ", (ROOT / "Makefile").read_text(), re.MULTILINE)
