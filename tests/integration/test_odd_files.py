"""Whatever stands in the place of a file of the repository, it is refused in a line, for its model alone."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.engine.repository import Repository
from service.errors import LoadError
from service.model.files import read_file
from service.observability.metrics import Metrics
from tests.conftest import put
from tests.unit.model.graphs import FLOAT, PRODUCT, write


def unix_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)  # a socket's path is short
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


ODD: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a socket": unix_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": os.mkdir,
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}
PLACES = ("1/model.onnx", "1/weights", "serving.toml", "labels.txt", "policy", "config.pbtxt")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ODD)
def test_it_is_refused_for_its_model_alone(
    kind: str, place: str, repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    path = repository / "other" / "1" / "model.onnx"
    write(path, [PRODUCT], {"product": FLOAT}, save_as_external_data=True, location="weights", size_threshold=0)
    odd = policies / "other.toml" if place == "policy" else repository / "other" / place
    odd.unlink(missing_ok=True)
    ODD[kind](odd)
    models = Repository(repository, "cpu", Metrics(CollectorRegistry()), policies=policies)
    models.start()
    served = list(models.served)
    with pytest.raises(LoadError) as refused:
        models.load("other")
    assert "\n" not in str(refused.value)
    assert models.stop()
    assert served[0] == "digits"
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "a link to itself"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    ODD[kind](tmp_path / "odd")
    with pytest.raises(OSError, match=r"not a regular file|No such device"):
        read_file(tmp_path / "odd")


def test_a_file_that_is_larger_than_allowed_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(101))
    assert read_file(tmp_path / "large", 101) == bytes(101)
    with pytest.raises(OSError, match="larger than 100 bytes"):
        read_file(tmp_path / "large", 100)


FORBIDDEN = {"the model's folder": "", "the version's folder": "1", "the model file": "1/model.onnx", "the policy": "serving.toml"}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_must_not_be_read_ends_no_scan(what: str, repository: Path, model_file: Path, tmp_path: Path) -> None:
    """In a process without the rights of root, which may read everything."""
    put(model_file, repository, "other", 1)
    put(model_file, repository, "zebra", 1)
    (repository / "other" / "serving.toml").write_text("")
    forbidden = repository / "other" / FORBIDDEN[what]
    mode = forbidden.stat().st_mode
    log, ports = tmp_path / "log", ("--grpc-port", "0", "--http-port", "0")
    forbidden.chmod(0)
    try:
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _WITHOUT_RIGHTS, "serve", str(repository), *ports],
                stderr=output,
            )
        deadline = time.monotonic() + 60
        while " ready; the page" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        forbidden.chmod(mode)
    lines = log.read_text()
    [said] = [line for line in lines.splitlines() if "ermission denied" in line]
    assert "model other" in said
    for served in ("digits", "zebra"):
        assert f"model {served} version 1 is ready" in lines
    assert "Traceback" not in lines


_WITHOUT_RIGHTS = """
import ctypes, os, sys
CAPBSET_DROP, OVERRIDES = 24, (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
if os.geteuid() == 0 and sys.argv[1] != "again":
    for capability in OVERRIDES:
        if ctypes.CDLL(None).prctl(CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError("the right cannot be dropped")
    os.execv(sys.executable, [sys.executable, "-m", "service.cli", *sys.argv[1:]])
os.execv(sys.executable, [sys.executable, "-m", "service.cli", *sys.argv[1:]])
"""
