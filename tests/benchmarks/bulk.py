"""`convoy classify FOLDER --output` beside `convoy bench --stream` with the same pictures, in turns; and its memory.

Each round asks one server of the digits with one after the other; the ratio is of images a second, that of `classify` from its own
last line, so without the start of the program. CPU is user and system time of the client's process. For memory a folder of a
million pictures (hard links to a thousand files) is read, and answered in the same process without a network, so that it takes
minutes and not hours.

Usage: python -m tests.benchmarks.bulk MODEL.onnx [--pictures 20000] [--rounds 5] [--million 1000000]
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from export.data.datasets import load_dataset
from tests.benchmarks.stream import print_line
from tests.benchmarks.transport import make_repository, serving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a digits model")
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--million", type=int, default=1_000_000, help="pictures for the measurement of memory; 0 for none")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = make_photos(folder / "photos", arguments.pictures)
        sample = [word for path in sorted(photos.rglob("*.png"))[:256] for word in ("--image", str(path))]
        repository = make_repository(folder, arguments.model)
        ratios = []
        with serving("Convoy fast", repository, folder) as (port, _):
            at = ["--model", "digits", "--server", f"127.0.0.1:{port}"]
            for number in range(arguments.rounds):
                asked, asked_cpu = classify(photos, folder / f"{number}.csv", at)
                text, bench_cpu = run(
                    "bench", *at, "--stream", "--items", "64", "--seconds", "5", "--metrics", "none", "--json", *sample
                )
                benched = json.loads(text)["items_per_second"]
                ratios.append(asked / benched)
                print_line(
                    f"round {number + 1}: classify {asked:,.0f} images/s, {asked_cpu:.1f} s of CPU; "
                    f"bench --stream {benched:,.0f}, {bench_cpu:.1f} s; ratio {ratios[-1]:.2f}"
                )
        if ratios:
            print_line(f"classify to bench --stream, median: {statistics.median(ratios):.2f}")
        if arguments.million:
            memory(folder, arguments.million)


def make_photos(folder: Path, count: int) -> Path:
    """A folder of pictures, a thousand in each of its folders; a thousand are files, the others links to them."""
    data = load_dataset("digits", 0).test
    for index in range(count):
        path = folder / f"{index // 1000:04}" / f"{index}.png"
        if index % 1000 == 0:
            path.parent.mkdir(parents=True)
        if index < 1000:
            path.write_bytes(data.encoded(index % len(data)))
        else:
            os.link(folder / "0000" / f"{index % 1000}.png", path)
    return folder


def run(*arguments: str) -> tuple[str, float]:
    """What a command prints, and its CPU in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run([sys.executable, "-m", "service.cli", *arguments], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.stdout + ended.stderr, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def classify(photos: Path, output: Path, at: list[str]) -> tuple[float, float]:
    """Images a second, and the client's CPU in seconds."""
    text, cpu = run("classify", str(photos), *at, "--output", str(output))
    said = re.search(r"\(([0-9,]+) images/s\)", text)
    if said is None:
        raise RuntimeError(text)
    return float(said[1].replace(",", "")), cpu


READ = """
import re, sys
from pathlib import Path
from service.bulk.output import Output
from service.bulk.pictures import LeftOut
from service.bulk.run import Rows, run
from service.bulk.sources import pictures
from tests.unit.bulk.answers import LABELS, columns, content, answer
from service.client import Outcome
found = answer(content("ann"))
def ask(images):
    for index, image in enumerate(images):
        yield Outcome(index, image, found)
rows = Rows(Output(Path(sys.argv[2]), resume=True), None, columns())
run(pictures([sys.argv[1]], LeftOut()), ask, rows, rows.open())
rows.close()
print(rows.classified, int(re.search("VmHWM: *([0-9]+)", Path("/proc/self/status").read_text().replace("\t", ""))[1]) // 1024)
"""


def memory(folder: Path, count: int) -> None:
    """Prints peaks of memory: a hundredth of the pictures, all of them, all of them again with --resume, in CSV and Parquet."""
    few, all_of_them = make_photos(folder / "few", count // 100), make_photos(folder / "all", count)
    flat = folder / "flat"
    flat.mkdir()
    for index in range(count):
        os.link(few / "0000" / f"{index % min(1000, count // 100)}.png", flat / f"{index}.png")
    for kind in ("csv", "parquet"):
        for photos in (few, all_of_them, all_of_them, flat):
            command: list[str | Path] = [sys.executable, "-c", READ, photos, folder / f"{photos.name}.{kind}"]
            counted, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            print_line(f"{kind}: {photos.name}: {int(counted):,} pictures classified, peak {int(peak):,} MiB")


if __name__ == "__main__":
    main()
