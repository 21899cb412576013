"""Memory that was freed goes back to the system, and what the environment says of malloc holds."""

import ctypes
import os
import subprocess
import sys

import pytest

from service.process.malloc import limit_freed_memory, return_freed_memory


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
from service.process.malloc import return_freed_memory

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
