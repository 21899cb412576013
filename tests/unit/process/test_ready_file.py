"""The ready file: whose it is, when it is written, and when it goes."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import service
from service.process import ready_file
from service.process.ready_file import ReadyFile
from tests.conftest import full_disk
from tests.integration.test_repository import eventually


def test_a_ready_file_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ready = ReadyFile(tmp_path / "gone" / "ready.json")
    ready.write(1, 2)
    ready.remove_own()
    assert "ready.json' cannot be written, trying again: No such file or directory" in caplog.text


def test_it_is_written_once_the_disk_has_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready_file, "RETRY_SECONDS", 0.02)
    path = tmp_path / "ready.json"
    ready = ReadyFile(path)
    with full_disk():
        for _ in range(3):  # as models change
            ready.write(1, 2)
        threading.Event().wait(0.1)
        eventually(lambda: not list(tmp_path.iterdir()))  # a try that fails takes its partial file away
    eventually(path.exists)
    assert json.loads(path.read_text()) == {"grpc_port": 1, "http_port": 2, "pid": os.getpid()}
    assert caplog.text.count("cannot be written") == 1
    ready.remove_own()
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_has_stopped_writes_it_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready_file, "RETRY_SECONDS", 0.02)
    ready = ReadyFile(tmp_path / "ready.json")
    with full_disk():
        ready.write(1, 2)
    ready.remove_own()
    ready.write(1, 2)
    eventually(lambda: all(thread.name != "ready-file" for thread in threading.enumerate()))
    assert list(tmp_path.iterdir()) == []


def test_a_server_does_not_remove_the_ready_file_of_another(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    old, new = ReadyFile(path), ReadyFile(path)
    old.write(1, 2)
    path.unlink()
    old.write(1, 2)
    assert path.exists(), "one that was deleted is written again"
    new.remove()
    new.write(3, 4)  # by the same process id, as in another container
    old.write(1, 2)
    old.remove_own()
    assert json.loads(path.read_text())["grpc_port"] == 3
    new.remove_own()
    assert list(tmp_path.iterdir()) == []
    for others in (f'{{"pid": {os.getpid()}}}', "[]", "half of i"):
        path.write_text(others)
        new.remove_own()
        assert path.read_text() == others


def test_two_servers_that_take_turns_never_remove_each_other_s(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    for _ in range(200):
        old, new = ReadyFile(path), ReadyFile(path)
        old.write(1, 2)
        removing = threading.Thread(target=old.remove_own)
        removing.start()
        new.write(3, 4)
        removing.join()
        assert path.read_text().startswith('{"grpc_port": 3')
        new.remove_own()
        assert not path.exists()


_EXITS = """
import logging, os, signal, sys, threading, time
from pathlib import Path
from service.lifecycle import StopOnSignals, exit_after
from service.process.process_exit import before_exit
from service.process.ready_file import ReadyFile
from service.process.vital_thread import vital_thread

def signals():
    StopOnSignals(0)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)

def hangs():
    exit_after(0)

def dies():
    def run():
        raise MemoryError
    vital_thread(run, "transport").start()

def unread_log():
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    logging.basicConfig(stream=stream, force=True)
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer, True)
    signals()

ready = ReadyFile(Path(sys.argv[1]))
before_exit(ready.remove_own)
ready.write(1, 2)
print(Path(sys.argv[1]).exists(), flush=True)
globals()[sys.argv[2]]()
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["signals", "hangs", "dies", "unread_log"])
def test_a_server_that_exits_at_once_leaves_none(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", _EXITS, str(tmp_path / "ready.json"), how]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (result.returncode, result.stdout) == (1, "True\n"), result.stderr
    assert list(tmp_path.iterdir()) == []


_SIGNALS_ANYWHERE = """
import os, signal, sys, threading, time
from pathlib import Path
from service.process import process_exit, ready_file
from service.lifecycle import StopOnSignals, exit_after
from service.process.process_exit import before_exit
from service.process.ready_file import ReadyFile

process_exit._LOG_SECONDS = ready_file._LOCK_SECONDS = 0.02
ready = ReadyFile(Path(sys.argv[1]))
before_exit(ready.remove_own)

def interrupted():
    threading.Thread(target=time.sleep, args=(0,)).start()
    exit_after(60)
    ready.remove_own()

def run(line):
    left = [line]
    def trace(frame, event, argument):
        left[0] -= event == "line"
        if left[0] == 0:
            left[0] = -1
            sys.settrace(None)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
        return trace
    StopOnSignals(0)
    ready.write(1, 2)
    sys.settrace(trace)
    interrupted()
    os._exit(0)

for line in range(1, 1000):
    child = os.fork()
    if not child:
        run(line)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.001)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        sys.exit(f"it hangs after a signal at line {line}")
    if os.waitstatus_to_exitcode(ended[1]) == 0:
        print(line)
        break
    ready.remove()
"""


def test_a_signal_at_any_line_of_the_code_that_it_interrupts_ends_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SIGNALS_ANYWHERE, str(tmp_path / "ready.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr
    assert 30 < int(result.stdout) < 1000


FORKS = {"decoder.py", "trial_process.py", "trial_server.py"}
"""What runs in forks, which have no ready file."""


def test_every_exit_at_once_goes_that_way() -> None:
    found = {path.name for path in Path(service.__path__[0]).rglob("*.py") if re.search(r"\bos\._exit\(", path.read_text())}
    assert found - FORKS == {"process_exit.py"}
