"""What a picture costs in `Local.classify_many`, beside a server with its clients, in interleaved rounds of one run.

The pictures are handwritten digits as PNG files of 28x28 pixels, some 500 bytes each. They are classified from their files, from
the bytes of these, and from pixels. CPU is user and system time of the process that asks, and of the server if there is one; beside
`convoy bench --stream` it is that of the server alone.

Usage: python -m tests.benchmarks.local [--rounds 5] [--images 7000] [--seconds 2] [--model MODEL.onnx]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from service import Local
from service.client import Client
from tests.benchmarks.transport import cpu_seconds, make_repository, serving

BENCH = ["--stream", "--items", "16", "--warmup", "0.5", "--metrics", "none", "--json"]
BENCH_PICTURES = 200


class Figure(NamedTuple):
    """Of one round."""

    images_per_second: float
    cpu_us: float
    """An image."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=7000)
    parser.add_argument("--seconds", type=float, default=2.0, help="of the load tool, a round")
    parser.add_argument("--model", type=Path, help="a digits model; trained afresh if not given")
    arguments = parser.parse_args()
    found: dict[str, list[Figure]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository = make_repository(folder, arguments.model)
        paths = pictures(folder / "pictures")
        images: dict[str, list[Any]] = {
            "files": paths,
            "PNG": [path.read_bytes() for path in paths],
            "pixels": [np.asarray(Image.open(path))[..., np.newaxis] for path in paths],
        }
        with (
            serving("Convoy fast", repository, folder) as (port, pid),
            Client(f"127.0.0.1:{port}") as client,
            Local(repository, provider="cpu") as local,
        ):
            for _ in range(arguments.rounds):
                found["bench --stream, PNG"].append(bench(port, pid, paths[:BENCH_PICTURES], arguments.seconds))
                for kind, each in images.items():
                    many = (each * (arguments.images // len(each) + 1))[: arguments.images]
                    found[f"Client.classify_many, {kind}"].append(classify_many(client, many, pid))
                    found[f"Local.classify_many, {kind}"].append(classify_many(local, many))
    report(found)


def pictures(folder: Path) -> list[Path]:
    """Writes the digits of scikit-learn as PNG files."""
    folder.mkdir()
    paths = []
    for number, pixels in enumerate(load_digits().images):
        paths.append(folder / f"{number}.png")
        Image.fromarray((pixels * 15).astype(np.uint8)).resize((28, 28), Image.Resampling.BILINEAR).save(paths[-1])
    return paths


def bench(port: int, pid: int, paths: Sequence[Path], seconds: float) -> Figure:
    """The load tool's figures of one round."""
    files = [argument for path in paths for argument in ("--image", str(path))]
    command = [sys.executable, "-m", "service.cli", "bench", "--model", "digits", "--server", f"127.0.0.1:{port}", *BENCH]
    before = cpu_seconds(pid)
    output = subprocess.run([*command, "--seconds", str(seconds), *files], check=True, capture_output=True, text=True).stdout
    images_per_second = json.loads(output)["items_per_second"]
    return Figure(images_per_second, 1e6 * (cpu_seconds(pid) - before) / (images_per_second * (seconds + 0.5)))


def classify_many(asked: Client | Local, images: Sequence[Any], server: int | None = None) -> Figure:
    """Classifies all images; `server` is the process that does it for a client."""
    cpu = cpu_seconds(server) if server else 0.0
    cpu, start = cpu + time.process_time(), time.perf_counter()
    for outcome in asked.classify_many(images, "digits"):
        assert not isinstance(outcome.answer, Exception), outcome
    seconds = time.perf_counter() - start
    cpu = time.process_time() + (cpu_seconds(server) if server else 0.0) - cpu
    return Figure(len(images) / seconds, 1e6 * cpu / len(images))


def report(found: dict[str, list[Figure]]) -> None:
    """Prints medians over the rounds, and the ratio to the load tool round by round."""
    loads = found["bench --stream, PNG"]
    for name, figures in found.items():
        rate, cpu_us = (statistics.median(column) for column in zip(*figures, strict=True))
        pairs = zip(figures, loads, strict=True)
        ratio = statistics.median(each.images_per_second / load.images_per_second for each, load in pairs)
        sys.stdout.write(f"{name:30} {rate:7,.0f} images/s, {ratio:.2f} of bench; {cpu_us:4.0f} us of CPU an image\n")


if __name__ == "__main__":
    main()
