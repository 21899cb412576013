"""Instructions of calls from handler to reply, see `calls.py`, and of a piece of plain Python to compare them with, the yardstick.

Instructions do not move with the machine and with what else runs on it: in one build of Python repeated runs agree within 0.5 %,
which is the addresses of memory. They do depend on the build: one CPython 3.11 takes 11 % fewer for everything than another. So the
figures are calls in yardsticks, in which these two agree within 1.5 %. They depend on Python's version, and on whether Convoy is
compiled.

What ONNX Runtime computes is left out, and what it takes to have it compute: valgrind takes other kernels of it than the processor
would. So the model here is tiny.
"""

import argparse
import json
import platform
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.callgrind import Instructions, Marks, run

SHAPES = ("Classify, pixels", "Classify, PNG", "Open Inference, raw", "Open Inference, typed")
"""What a call sends: one picture, uint8[28,28,1]."""

FILTERS = 2
"""Of the tiny model's first convolution: valgrind takes tens of nanoseconds for each of a convolution's multiplications."""

WARM_UP_CALLS = 400
"""Python 3.11 and later rewrite code that runs often. Memory and caches are as they stay after it, too."""

SHORT, LONG = 2, 8
"""Rounds of calls that are counted, of single calls eight times as many. The difference has nothing in it that happens once, and
nothing of what metrics do every 1,024 calls."""


ONNX_RUNTIME = "onnxruntime_pybind11_state"

PARTS: dict[str, tuple[str, ...]] = {
    "Python": ("libpython", "python"), "protobuf": ("_message",), "NumPy": ("_multiarray",), "Pillow": ("_imaging", "libz"),
    "libc": ("libc.", "libm.", "libpthread", "ld-"), "ONNX Runtime": (ONNX_RUNTIME,), "other": (),
}  # fmt: skip
"""Beginnings of the names of object files. Compiled modules of Convoy are in `other`."""

Point = tuple[str, int]
"""A shape of call, and how many calls are in a batch."""


class Counted(NamedTuple):
    """Instructions a call.

    Attributes:
        by_function: all of them, by object file and function.
        model: those of ONNX Runtime, and of whatever `session.run` does around it.
    """

    by_function: dict[tuple[str, str], float]
    model: dict[tuple[str, str], float]

    def by_part(self) -> dict[str, float]:
        """All of them, by the names of PARTS."""
        found = dict.fromkeys(PARTS, 0.0)
        for (library, _), count in self.by_function.items():
            found[next((part for part, files in PARTS.items() if library.startswith(files)), "other")] += count
        return found

    @property
    def service(self) -> float:
        """Those of the service: all but ONNX Runtime's own, and but what is outside of ONNX Runtime when it runs alone."""
        return _outside(self.by_function) - _outside(self.model)


class Report(NamedTuple):
    """What one run counted.

    Attributes:
        build: Python's version, and whether Convoy is compiled.
        yardstick: instructions of the piece of plain Python.
        points: instructions a call, by shape and batch.
    """

    build: str
    yardstick: float
    points: dict[Point, Counted]

    def figures(self) -> dict[str, float]:
        """What the service takes for a call, in yardsticks, by `Classify, pixels: 16`."""
        return {f"{shape}: {batch}": each.service / self.yardstick for (shape, batch), each in self.points.items()}


def count(points: Sequence[Point]) -> Report:
    """Counts the instructions of calls. Raises RuntimeError if valgrind or gcc is missing."""
    from tests.benchmarks import small_cnn  # it imports onnx, for which valgrind takes 20 seconds

    batches = sorted({batch for _, batch in points})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small_cnn.write(folder / "models" / "digits" / "1" / "model.onnx", FILTERS)
        parts = run(folder, ["-m", "tests.benchmarks.instructions", str(folder), json.dumps(points)])
        build = (folder / "build").read_text()
    pairs = [_difference(short, long) for short, long in zip(parts[::2], parts[1::2], strict=True)]
    yardstick, *rest = pairs
    alone = {batch: _each(pair, batch) for batch, pair in zip(batches, rest[: len(batches)], strict=True)}
    whole = {point: _each(pair, point[1]) for point, pair in zip(points, rest[len(batches) :], strict=True)}
    found = {point: Counted(whole[point], alone[point[1]]) for point in points}
    return Report(build, sum(yardstick.values()) / (20 * (LONG - SHORT)), found)


def _difference(short: Instructions, long: Instructions) -> Instructions:
    long.subtract(short)
    return long


def _each(counted: Instructions, batch: int) -> dict[tuple[str, str], float]:
    calls = batch * (_rounds(LONG, batch) - _rounds(SHORT, batch))
    return {key: number / calls for key, number in counted.items()}


def _rounds(rounds: int, batch: int) -> int:
    return 8 * rounds if batch == 1 else rounds


def _outside(counted: dict[tuple[str, str], float]) -> float:
    return sum(number for (library, _), number in counted.items() if not library.startswith(ONNX_RUNTIME))


def build() -> str:
    """Of the Python that runs this, and of Convoy: what the figures depend on."""
    files = [getattr(module, "__file__", None) or "" for name, module in sys.modules.items() if name.startswith("service.")]
    compiled = any(file.endswith(".so") for file in files)
    python = f"{platform.python_implementation()} {sys.version_info.major}.{sys.version_info.minor}"
    return f"{python}, {'compiled' if compiled else 'interpreted'}"


class _Piece:
    """One of the yardstick's objects."""

    __slots__ = ("lock", "name", "values")

    def __init__(self, name: str, values: list[float]) -> None:
        self.name = name
        self.values = values
        self.lock = threading.Lock()

    def total(self, scale: float) -> float:
        with self.lock:
            return sum([scale * each for each in self.values])


def _yardstick(rounds: int) -> None:
    """Plain Python, of the kind that a call is made of: objects, methods, locks, dicts, lists, exceptions, bytes."""
    known: dict[str, int] = {}
    for number in range(20 * rounds):  # the yardstick is one of these
        pieces = [_Piece(f"piece {index}", [0.5, 1.5, float(number)]) for index in range(5)]
        for piece in pieces:
            known[piece.name] = known.get(piece.name, 0) + 1
        totals = [piece.total(2.0) for piece in pieces]
        apply = partial(max, *totals)
        try:
            if apply() < 0:
                raise ValueError(number)
            known["missing"] = known["absent"]
        except KeyError:
            pass
        b"".join([piece.name.encode() for piece in pieces])


def _program(folder: Path, points: list[Point]) -> None:
    """What runs under valgrind."""
    import tests.benchmarks.ticking_clock  # noqa: F401 - before anything of service/
    from tests.benchmarks.calls import Calls

    calls = Calls(folder / "models" / "digits" / "1" / "model.onnx")
    (folder / "build").write_text(build())
    batches = sorted({batch for _, batch in points})
    _yardstick(LONG)
    for batch in batches:
        calls.model(batch, WARM_UP_CALLS // batch)
    for _ in range(2):
        for shape, batch in points:
            calls.whole(shape, batch, WARM_UP_CALLS // batch)
    with Marks(folder) as marks:
        for rounds in (SHORT, LONG):
            marks.count(partial(_yardstick, rounds))
        for batch in batches:
            for rounds in (SHORT, LONG):
                marks.count(partial(calls.model, batch, _rounds(rounds, batch)))
        for shape, batch in points:
            calls.scrape()  # every buffer of the metrics is empty
            for rounds in (SHORT, LONG):
                marks.count(partial(calls.whole, shape, batch, _rounds(rounds, batch)))
    calls.close()


def on_thread_grpc(work: Callable[[], None]) -> None:
    """Does it on a thread that has the name of the transport's, and raises what it raises."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
            done.set_result(None)
        except BaseException as error:  # noqa: BLE001 - raised by who waits
            done.set_exception(error)

    threading.Thread(target=run, name="grpc").start()
    done.result()


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("points", type=json.loads)
    arguments = parser.parse_args()
    points = [(str(shape), int(batch)) for shape, batch in arguments.points]
    on_thread_grpc(lambda: _program(arguments.folder, points))


if __name__ == "__main__":
    _main()
