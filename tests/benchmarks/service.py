"""What the service itself costs: calls from handler to reply, without gRPC, and in them the model alone. See `calls.py`.

Everything is on one thread, as in production. CPU time is that thread's; a block of calls and a block of the same batches in ONNX
Runtime alone take turns, and Python is the difference of the two, the median over the rounds.

With --instructions it counts instructions instead, of a tiny model and in half a minute or more, see `instructions.py`: by part,
with --functions also by function of the interpreter and of the libraries. --renew writes those of the budget, see
`instruction_budget.py`.

Usage: python -m tests.benchmarks.service [--rounds 7] [--batches 1,8,16,32] [--shapes pixels,PNG,raw,typed] [--model MODEL.onnx]
       python -m tests.benchmarks.service --instructions [--batches 1,16] [--shapes pixels,raw] [--functions 30] [--renew]
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks import instruction_budget
from tests.benchmarks.instructions import ONNX_RUNTIME, PARTS, SHAPES, Point, count, on_thread_grpc

CALLS = 1024
"""In a block, about 100 ms: what metrics do every 1,024 calls is in each."""

WARM_UP = 3
"""Rounds of `CALLS` / 8 calls before the first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=lambda text: [int(each) for each in text.split(",")], default=[1, 8, 16, 32])
    parser.add_argument("--shapes", default="pixels,PNG,raw,typed", help="parts of their names")
    parser.add_argument("--model", type=Path, help="of uint8[28,28,1] and ten labels; a small CNN with random weights if not given")
    parser.add_argument("--instructions", action="store_true", help="needs valgrind and gcc")
    parser.add_argument("--functions", type=int, default=0, metavar="N", help="with --instructions: the dearest N functions")
    parser.add_argument("--renew", action="store_true", help="with --instructions: write the budget")
    arguments = parser.parse_args()
    if arguments.instructions:
        _count(arguments)
        return
    on_thread_grpc(lambda: _measure(arguments))


def _measure(arguments: argparse.Namespace) -> None:
    import tests.benchmarks.ticking_clock  # noqa: F401 - before anything of service/
    from tests.benchmarks import small_cnn
    from tests.benchmarks.calls import Calls

    points = _points(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "digits" / "1" / "model.onnx"
        if arguments.model is None:
            small_cnn.write(model)
        else:
            model.parent.mkdir(parents=True)
            shutil.copy(arguments.model, model)
        calls = Calls(model)
    found: dict[tuple[str, int], list[tuple[float, float]]] = {point: [] for point in points}
    for number in range(WARM_UP + arguments.rounds):
        for shape, batch in points:
            rounds = CALLS // batch if number >= WARM_UP else CALLS // 8 // batch + 1
            start = time.thread_time_ns()
            calls.whole(shape, batch, rounds)
            middle = time.thread_time_ns()
            calls.model(batch, rounds)
            end = time.thread_time_ns()
            if number >= WARM_UP:
                each = 1000 * batch * rounds
                found[shape, batch].append(((middle - start) / each, (end - middle) / each))
    calls.close()
    table = Table("", "batch", "whole", "model", "Python", "Python, least and most", "Python to model", box=None,
                  title=f"CPU us a call, medians of {arguments.rounds} rounds", title_justify="left")  # fmt: skip
    for (shape, batch), pairs in found.items():
        python = [whole - model for whole, model in pairs]
        ratio = statistics.median((whole - model) / model for whole, model in pairs)
        whole, model_alone = (statistics.median(each) for each in zip(*pairs, strict=True))
        table.add_row(
            shape, str(batch), f"{whole:.1f}", f"{model_alone:.1f}", f"{statistics.median(python):.1f}",
            f"{min(python):.1f} to {max(python):.1f}", f"{ratio:.2f}",
        )  # fmt: skip
    Console(highlight=False, width=140).print(table)


def _count(arguments: argparse.Namespace) -> None:
    try:
        report = count(instruction_budget.POINTS if arguments.renew else _points(arguments))
    except RuntimeError as error:
        sys.exit(str(error))
    if arguments.renew:
        instruction_budget.write(report.build, report.figures())
    console = Console(highlight=False, width=140)
    table = Table("", "batch", "service", "in yardsticks", *PARTS, box=None, title_justify="left",
                  title=f"Instructions a call; {report.build}; the yardstick has {report.yardstick:,.0f}")  # fmt: skip
    for (shape, batch), counted in report.points.items():
        table.add_row(shape, str(batch), f"{counted.service:,.0f}", f"{counted.service / report.yardstick:.3f}",
                      *(f"{number:,.0f}" for number in counted.by_part().values()))  # fmt: skip
    console.print(table)
    for (shape, batch), counted in report.points.items() if arguments.functions else ():
        table = Table("instructions a call", "function", "of", box=None, title=f"{shape}: {batch}", title_justify="left")
        dearest = sorted(counted.by_function.items(), key=lambda each: -each[1])
        for (library, function), number in [each for each in dearest if not each[0][0].startswith(ONNX_RUNTIME)][
            : arguments.functions
        ]:
            table.add_row(f"{number:,.0f}", function[:80], library)
        console.print(table)


def _points(arguments: argparse.Namespace) -> list[Point]:
    shapes = [shape for shape in SHAPES if any(part in shape for part in arguments.shapes.split(","))]
    return [(shape, batch) for shape in shapes for batch in arguments.batches]


if __name__ == "__main__":
    main()
