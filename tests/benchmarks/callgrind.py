"""Counts the instructions of parts of a Python program by valgrind's callgrind, which counts alike however busy the machine is.

The program is run by `run`, and says by `Marks` which part of it is counted. Nothing else is instrumented, so that the rest is only
as slow as any program under valgrind. Needs the Debian packages valgrind and gcc.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

NEEDED = "valgrind and gcc are needed: apt-get install valgrind gcc libc6-dev"

_LIBRARY = "marks.so"
_SOURCE = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; }
void stop(void) { CALLGRIND_STOP_INSTRUMENTATION; }
void dump(void) { CALLGRIND_DUMP_STATS; }
"""

Instructions = Counter[tuple[str, str]]
"""Instructions by object file, such as `libc.so.6`, and function."""


class Marks:
    """For the program: begins and ends what is counted."""

    def __init__(self, folder: Path) -> None:
        """`folder` is that of `run`."""
        self._library = ctypes.CDLL(str(folder / _LIBRARY))

    def __enter__(self) -> "Marks":
        self._library.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._library.stop()

    def count(self, part: Callable[[], object]) -> None:
        """Calls a part of the program and counts its instructions; `run` returns them in the order of these calls."""
        dump = self._library.dump
        dump()  # what was before
        part()
        dump()


def run(folder: Path, arguments: Sequence[str], timeout_seconds: float = 900) -> list[Instructions]:
    """Runs Python with arguments under callgrind. Returns the instructions of each counted part, of the thread that counts.

    What is random in a process is not: hashes of strings, the environment, addresses, and threads of libraries.

    Args:
        folder: an empty folder for the program's `Marks`.
        arguments: of Python.
        timeout_seconds: after so long the program is killed.

    Raises:
        RuntimeError: valgrind or gcc is missing, or the program has failed.
    """
    valgrind, compiler = shutil.which("valgrind"), shutil.which("gcc")
    if valgrind is None or compiler is None:
        raise RuntimeError(NEEDED)
    source = folder / "marks.c"
    source.write_text(_SOURCE)
    _run([compiler, "-shared", "-fPIC", "-O2", "-o", str(folder / _LIBRARY), str(source)], 60, dict(os.environ))
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip
    options = ["--tool=callgrind", "-q", "--vgdb=no", "--instr-atstart=no", "--compress-strings=no", "--compress-pos=no",
               f"--callgrind-out-file={folder / 'counted'}"]  # fmt: skip
    _run([valgrind, *options, sys.executable, *arguments], timeout_seconds, environment)
    last = len(list(folder.glob("counted.*")))
    return [read(folder / f"counted.{number}") for number in range(2, last + 1, 2)]


def _run(command: list[str], timeout_seconds: float, environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_seconds, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def read(path: Path) -> Instructions:
    """What functions themselves cost, without those that they call. The format is in callgrind's manual."""
    found: Instructions = Counter()
    library = function = ""
    of_callee = False
    with path.open() as lines:
        for line in lines:
            name, _, value = line.rstrip().partition("=")
            if name == "ob":
                library = value.rpartition("/")[2]
            elif name == "fn":
                function = value
            elif name == "calls":
                of_callee = True  # the next line has what the called function costs
            elif line[:1].isdigit():
                if not of_callee:
                    found[library, function] += int(line.split()[1])
                of_callee = False
    return found
