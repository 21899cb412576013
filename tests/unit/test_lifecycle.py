"""The stop event, the ready file, and the settings of malloc."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.lifecycle import ReadyFile, limit_freed_memory, return_freed_memory

_SIGNAL_AT_ANY_MOMENT = """
import random, signal
from service.lifecycle import StopEvent

told = []
stop = StopEvent(told.append)
signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGTERM))  # the one signal that a timer can send within microseconds
for _ in range(5_000):
    stop._is_set = False
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 60e-6))
    stop.wait()
print(len(told))
"""


def test_a_signal_ends_the_wait_at_any_moment() -> None:
    """With a `threading.Event` instead, one of the first thousand signals finds the event's lock held, and deadlocks."""
    script = [sys.executable, "-c", _SIGNAL_AT_ANY_MOMENT]
    assert subprocess.run(script, capture_output=True, text=True, timeout=60, check=True).stdout == "5000\n"


_A_THREAD = """
import threading
from service.lifecycle import StopEvent

stop = StopEvent()
threading.Timer(0.1, stop.set).start()
stop.wait()
stop.set()
stop.wait()
print(stop.is_set())
"""


def test_a_thread_ends_the_wait_too() -> None:
    script = [sys.executable, "-c", _A_THREAD]
    assert subprocess.run(script, capture_output=True, text=True, timeout=60, check=True).stdout == "True\n"


_DIES = """
import logging, threading
from service.lifecycle import vital_thread

logging.basicConfig()

def run():
    raise MemoryError

vital_thread(run, "transport").start()
threading.Event().wait(60)
"""


def test_a_process_does_not_outlive_a_thread_that_it_needs() -> None:
    result = subprocess.run([sys.executable, "-c", _DIES], capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert "the thread transport has ended, exiting at once: MemoryError" in result.stderr


def test_a_ready_file_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ReadyFile(tmp_path / "gone" / "ready.json").write(1, 2)
    assert "ready.json' cannot be written: No such file or directory" in caplog.text


def test_a_server_does_not_remove_the_ready_file_of_another(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    ready = ReadyFile(path)
    ready.write(1, 2)
    ready.remove_own()
    assert list(tmp_path.iterdir()) == []
    for others in ('{"pid": 1}', "[]", "half of i"):
        path.write_text(others)
        ready.remove_own()
        assert path.read_text() == others


class _Libc:
    """A C library that notes the calls of its mallopt."""

    def __init__(self) -> None:
        self.called: list[tuple[int, int]] = []

    def mallopt(self, option: int, value: int) -> int:
        self.called.append((option, value))
        return 1


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_of_malloc_in_the_environment_hold(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    libc = _Libc()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    for other in [each for each in os.environ if each.startswith("MALLOC_")]:
        monkeypatch.delenv(other)
    with monkeypatch.context() as patch:
        patch.setenv(name, "glibc.malloc.arena_max=1" if name == "GLIBC_TUNABLES" else "1")
        limit_freed_memory()
    assert libc.called == []
    limit_freed_memory()
    assert len(libc.called) == 3


_FREED_IN_PIECES = """
import ctypes
from pathlib import Path
from service.lifecycle import return_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def resident_megabytes():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) // 1024

blocks = [libc.malloc(50_000) for _ in range(4_000)]
for block in blocks:
    ctypes.memset(block, 1, 50_000)
for number, block in enumerate(blocks):
    if number % 100 != 99:  # what stays keeps malloc from giving back the rest
        libc.free(block)
before = resident_megabytes()
return_freed_memory()
print(before - resident_megabytes())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_memory_that_was_freed_in_pieces_goes_back() -> None:
    result = subprocess.run([sys.executable, "-c", _FREED_IN_PIECES], capture_output=True, text=True, timeout=60, check=True)
    assert int(result.stdout) > 150


def test_without_mallopt_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    limit_freed_memory()
    return_freed_memory()
