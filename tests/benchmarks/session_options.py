"""ONNX Runtime's session options beside those that the service sets: CPU time a batch, time to load, memory, and the answers.

Each row is a session with something changed, in a process of its own beside one that is as the service has it. The two take turns
in pairs. A figure is the median over the pairs of changed to unchanged CPU time of the process, which a busy machine disturbs
least; below 1 the change is cheaper. `apart` is the same with a pause of 2 ms after each batch of one, in which threads that spin
do so in vain. `load` is CPU time too. `MiB` is the memory that a first and a second session of the model take. `answers` is the
largest difference of a probability in a batch of 8.

Needs what `convoy train` needs. Usage: python -m tests.benchmarks.session_options [--networks small,r18] [--only WORD ...]
    [--batches 1,8,32] [--rounds 9] [--threads N] [--python OTHER/bin/python ...] [--folder DIR]
Rows are shown as they come. All rows of all networks take about 20 minutes; `--only` takes those with one of some words.
"""

import argparse
import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from service.model import cpus
from tests.benchmarks.session_models import NETWORKS, write

PAIR_MICROSECONDS = 20_000
"""CPU time of one measurement, if a batch is not longer."""

APART_BATCHES = 10
APART_MILLISECONDS = 2

SPIN = "session.intra_op."
OPTIONS: dict[str, dict[str, Any]] = {
    "as the service has it": {},
    "ONNX Runtime's own": {"none": True},
    "threads: 1": {"threads": 1},
    "threads: 2": {"threads": 2},
    "threads: pinned": {"options": {"session.intra_op_thread_affinities": "2"}},
    "spin: never": {"options": {SPIN + "allow_spinning": "0"}},
    "spin: 20 us": {"options": {SPIN + "spin_duration_us": "20"}},
    "spin: 50 us": {"options": {SPIN + "spin_duration_us": "50"}},
    "spin: as long as by default": {"options": {SPIN + "spin_duration_us": "-1"}},
    "spin: with back-off 8": {"options": {SPIN + "spin_backoff_max": "8"}},
    "spin: stopped after each run": {"options": {SPIN + "spin_duration_us": "-1", "session.force_spinning_stop": "1"}},
    "work in shrinking blocks": {"options": {"session.dynamic_block_base": "4"}},
    "arena: of its own": {
        "options": {"session.use_env_allocators": "0", "session.use_device_allocator_for_initializers": "0"}
    },
    "arena: none": {
        "options": {
            "session.use_env_allocators": "0", "session.use_device_allocator_for_initializers": "0", "enable_cpu_mem_arena": False,
        }
    },
    "arena: shrunk after each run": {"run": {"memory.enable_memory_arena_shrinkage": "cpu:0"}},
    "arena: with the weights in it": {"options": {"session.use_device_allocator_for_initializers": "0"}},
    "no memory pattern": {"options": {"enable_mem_pattern": False}},
    "no reuse of memory": {"options": {"enable_mem_reuse": False}},
    "graph: not optimised": {"options": {"graph_optimization_level": "ORT_DISABLE_ALL"}},
    "graph: basic": {"options": {"graph_optimization_level": "ORT_ENABLE_BASIC"}},
    "graph: extended (no NCHWc)": {"options": {"graph_optimization_level": "ORT_ENABLE_EXTENDED"}},
    "graph: saved": {"load": "saved"},
    "graph: saved as .ort": {"load": "saved-ort"},
    "graph: saved with packed weights": {"load": "saved-prepacked"},
    "denormals are zero: in threads of ONNX Runtime": {"options": {"session.set_denormal_as_zero": "1"}},
    "denormals are zero: in all": {"options": {"session.set_denormal_as_zero": "1"}, "flush": True},
    "prepacking: none": {"options": {"session.disable_prepacking": "1"}},
    "prepacking: in parallel": {"options": {"session.prepack.enable_parallel": "1"}},
    "weights shared by sessions": {"share": True},
    "NCHWc: sliding depthwise": {"options": {"mlas.nchwc_depthwise_sliding": "1"}},
    "NCHWc: blocked pointwise": {"options": {"mlas.nchwc_pointwise_conv_max_input_channel_batch": "128"}},
    "bfloat16 products": {"options": {"mlas.enable_gemm_fastmath_arm64_bfloat16": "1"}},
    "nodes in parallel": {"options": {"execution_mode": "ORT_PARALLEL"}},
}  # fmt: skip

OPTIONS_OF_INT8: dict[str, dict[str, Any]] = {
    "QDQ: not fused": {"options": {"session.disable_quant_qdq": "1"}},
    "QDQ: cleaned up": {"options": {"session.enable_quant_qdq_cleanup": "1"}},
    "QDQ: int8 allowed": {"options": {"session.qdqisint8allowed": "1"}},
    "exact products without VNNI": {"options": {"session.x64quantprecision": "1"}},
}

PLAIN = (
    "as the service has it",
    "denormals are zero: in threads of ONNX Runtime",
    "denormals are zero: in all",
    "prepacking: none",
    "graph: extended (no NCHWc)",
)
"""What else is measured of files in int8 or with denormal weights."""


class Session:
    """A `session_worker`."""

    def __init__(self, python: str, model: Path, threads: int, changes: dict[str, Any]) -> None:
        arguments = {"model": str(model), "threads": threads} | changes
        self._process = subprocess.Popen(
            [python, "-m", "tests.benchmarks.session_worker", json.dumps(arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.loaded = self._answer()

    def measure(self, items: float, batches: float, pause: float = 0.0) -> float:
        """CPU microseconds of a batch."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{items} {batches} {pause}\n")
        self._process.stdin.flush()
        return float(self._answer()["cpu_us"])

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(self._process.communicate()[1].strip().splitlines()[-1])
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def opened(*arguments: Any) -> Iterator[Session]:
    session = Session(*arguments)
    try:
        yield session
    finally:
        session.close()


class Row(NamedTuple):
    """A file with changed options beside a file as the service has it."""

    name: str
    base: Path
    file: Path
    changes: dict[str, Any]
    python: str = sys.executable


def rows(files: dict[str, Path], pythons: list[str]) -> Iterator[Row]:
    """All rows of a network."""
    fp32 = files["fp32"]
    for name, changes in OPTIONS.items():
        yield Row(name, fp32, fp32, changes)
    for kind, file in files.items():
        if kind != "fp32":
            yield Row(f"file: {kind}", fp32, file, {})
    for kind in ("int8", "denormal"):
        if kind in files:
            for name in PLAIN:
                yield Row(f"{kind}; {name}", files[kind], files[kind], OPTIONS[name])
    for name, changes in OPTIONS_OF_INT8.items():
        yield Row(f"int8; {name}", files["int8"], files["int8"], changes)
    for python in pythons:
        for kind in ("fp32", "int8"):
            yield Row(f"{kind}; {version(python)}", files[kind], files[kind], {}, python)


def version(python: str) -> str:
    """Of the ONNX Runtime of another Python."""
    code = "import onnxruntime; print(onnxruntime.__version__)"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return f"ONNX Runtime {found.stdout.strip()}"


def measured(row: Row, base: Session, batches: list[int], arguments: argparse.Namespace) -> list[str]:
    """The cells of a row; of one that ONNX Runtime refuses, why."""
    try:
        with opened(row.python, row.file, arguments.threads, row.changes) as other:
            cells = []
            for items in batches:
                one = max(min(session.measure(items, 1) for _ in range(2)) for session in (base, other))
                found = ratios(base, other, arguments.rounds, items, math.ceil(PAIR_MICROSECONDS / one))
                cells.append(shown(found))
            cells.append(shown(ratios(base, other, arguments.rounds, 1, APART_BATCHES, APART_MILLISECONDS)))
            was, now = base.loaded, other.loaded
    except RuntimeError as error:
        return [f"refused: {error}"]
    difference = np.abs(np.array(now["answers"]) - np.array(was["answers"])).max()
    return [
        *cells,
        f"{now['load_ms']:.1f} of {was['load_ms']:.1f} ms",
        f"{now['first']:.1f} + {now['second']:.1f} of {was['first']:.1f} + {was['second']:.1f}",
        "the same" if difference == 0 else f"{difference:.0e}",
    ]


def ratios(base: Session, other: Session, rounds: int, *what: float) -> list[float]:
    """Time of `other` to that of `base`, pair by pair; who is first takes turns."""
    found = []
    for turn in range(rounds):
        pair = {}
        for session in (base, other) if turn % 2 else (other, base):
            pair[session] = session.measure(*what)
        found.append(pair[other] / pair[base])
    return found


def shown(found: list[float]) -> str:
    """The median, and how far the middle half spreads."""
    low, middle, high = statistics.quantiles(found, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="rows whose name has one of these")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=9, help="pairs")
    parser.add_argument("--threads", type=int, default=cpus.cpu_budget())
    parser.add_argument("--python", nargs="*", default=[], help="of environments with another ONNX Runtime: a row for each")
    parser.add_argument("--folder", type=Path, help="keeps the models, which take a minute to make")
    arguments = parser.parse_args()
    batches = [int(each) for each in arguments.batches.split(",")]
    console = Console(highlight=False, soft_wrap=True, width=250)
    table = Table("network", "row", *(f"batch of {items}" for items in batches), "apart", "load", "MiB", "answers", box=None)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        for network in arguments.networks.split(","):
            files = write(folder, network)
            bases: dict[Path, Session] = {}
            for each in rows(files, arguments.python):
                if any(word in each.name for word in arguments.only or [""]):
                    if each.base not in bases:
                        bases[each.base] = stack.enter_context(opened(sys.executable, each.base, arguments.threads, {}))
                    cells = measured(each, bases[each.base], batches, arguments)
                    console.print(each.base.stem, each.name, *cells, sep=" | ", style="dim")
                    table.add_row(each.base.stem, each.name, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
