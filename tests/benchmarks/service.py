"""What the service itself costs: calls from handler to reply, without gRPC, and in them the model alone. See `calls.py`.

Everything is on one thread, as in production. CPU time is that thread's; a block of calls and a block of the same batches in ONNX
Runtime alone take turns, and Python is the difference of the two, the median over the rounds.

Usage: python -m tests.benchmarks.service [--rounds 7] [--batches 1,8,16,32] [--shapes pixels,PNG,raw,typed] [--model MODEL.onnx]
"""

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

CALLS = 512
"""In a block, about 50 ms."""

WARM_UP = 3
"""Rounds of `CALLS` / 8 calls before the first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=lambda text: [int(each) for each in text.split(",")], default=[1, 8, 16, 32])
    parser.add_argument("--shapes", default="pixels,PNG,raw,typed", help="parts of their names")
    parser.add_argument("--model", type=Path, help="of uint8[28,28,1] and ten labels; a small CNN with random weights if not given")
    arguments = parser.parse_args()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            _measure(arguments)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            failures.append(error)

    thread = threading.Thread(target=run, name="grpc")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _measure(arguments: argparse.Namespace) -> None:
    import tests.benchmarks.ticking_clock  # noqa: F401 - before anything of service/
    from tests.benchmarks import small_cnn
    from tests.benchmarks.calls import SHAPES, Calls

    shapes = [shape for shape in SHAPES if any(part in shape for part in arguments.shapes.split(","))]
    points = [(shape, batch) for shape in shapes for batch in arguments.batches]
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


if __name__ == "__main__":
    main()
