"""`make demo`: from labelled images to answers over gRPC, with the commands that a user would type.

Trains the tutorials' CNN on scikit-learn's handwritten digits, exports it, serves it on free ports, classifies the held-out digits
as PNG files over gRPC, prints answers, accuracy and latencies, and drains the server. All files are in a temporary folder.
"""

import contextlib
import io
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from export.data import datasets
from service.bench.server_metrics import quantile, scrape
from service.client import Classification, Client

MODEL = "digits"
EPOCHS = 20
SEED = 0
SHOWN = 3
MINIMUM_ACCURACY = 98.0

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Runs the demo. Returns 0 if the held-out accuracy is at least MINIMUM_ACCURACY and the server stopped cleanly."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="convoy-demo-") as folder:
        run, repository = Path(folder) / "run", Path(folder) / "models"
        step(1, "train a CNN on handwritten digits")
        training = ("--data", "digits", "--network", "article-cnn", "--epochs", str(EPOCHS), "--seed", str(SEED))
        convoy("train", *training, "--output", str(run))
        step(2, "export it as one ONNX file")
        convoy("export", str(run), "--repository", str(repository), "--name", MODEL)
        step(3, "serve it")
        with serving(repository, Path(folder) / "ready.json") as ready:
            console.print(f"gRPC on 127.0.0.1:{ready['grpc_port']}, metrics on http://127.0.0.1:{ready['http_port']}/metrics")
            step(4, "classify the held-out digits over gRPC, one PNG a request")
            test = datasets.load_dataset("digits", SEED).test
            with Client(f"127.0.0.1:{ready['grpc_port']}") as client:
                answers = [
                    client.classify([test.encoded(index)], MODEL, top_k=3)
                    for index in track(range(len(test)), "classifying", console=console, transient=True)
                ]
            accuracy = show(test, answers)
            step(5, "read the latencies back from the server's metrics")
            show_latencies(ready["http_port"])
            step(6, "stop the server")
        console.print("drained and stopped, exit code 0")
    console.print(f"\nDone in {time.monotonic() - start:.0f} s. The README shows how to do the same with your own data.")
    if accuracy < MINIMUM_ACCURACY:
        console.print(f"[red]held-out accuracy is {accuracy:.2f} %, less than {MINIMUM_ACCURACY} %[/red]")
        return 1
    return 0


def step(number: int, what: str) -> None:
    console.print(f"\n[bold]{number}. {what}[/bold]")


def convoy(*arguments: str) -> None:
    """Runs a command of the program and shows it as a user would type it."""
    console.print(f"$ convoy {' '.join(arguments)}", style="dim", markup=False)
    result = subprocess.run([sys.executable, "-m", "service.cli", *arguments], check=False)
    if result.returncode != 0:
        sys.exit(result.returncode)


@contextlib.contextmanager
def serving(repository: Path, ready_file: Path) -> Iterator[dict[str, int]]:
    """A server of the repository on free ports; always drained at the end."""
    arguments = ["serve", str(repository), "--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready_file)]
    console.print(f"$ convoy {' '.join(arguments)}", style="dim", markup=False)
    server = subprocess.Popen([sys.executable, "-m", "service.cli", *arguments, "--log-level", "warning"])
    try:
        deadline = time.monotonic() + 60
        while not ready_file.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit("the server did not become ready")
            time.sleep(0.02)
        yield json.loads(ready_file.read_text())
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
    if code != 0:
        sys.exit(f"the server exited with code {code}")


def show(test: datasets.Part, answers: list[Classification]) -> float:
    """Prints a few pictures with their answers and the overall accuracy; returns it in percent."""
    right = [answer.results[0][0].index == label for answer, label in zip(answers, test.labels.tolist(), strict=True)]
    wrong = [index for index, correct in enumerate(right) if not correct]
    for index in [*range(SHOWN), *wrong[:1]]:
        answer = answers[index].results[0]
        lines = [f"true label {test.labels[index]}{'' if right[index] else ': a mistake'}", ""]
        lines += [f"{found.label}  {found.probability:7.2%}  {'█' * round(found.probability * 30)}" for found in answer]
        picture = blocks(np.asarray(Image.open(io.BytesIO(test.encoded(index)))))
        for row, text in zip(picture, [*lines, *[""] * len(picture)], strict=False):
            console.print(f"  {row}   {text}", markup=False)
        console.print()
    accuracy: float = 100 * sum(right) / len(right)
    console.print(f"held-out accuracy over gRPC: [bold]{accuracy:.2f} %[/bold] ({sum(right)} of {len(right)})")
    return accuracy


def blocks(picture: NDArray[np.uint8]) -> list[str]:
    """A gray picture uint8[h,w] as text, two characters a pixel; readable without colours."""
    shades = " ░▒▓█"
    return ["".join(shades[value * (len(shades) - 1) // 255] * 2 for value in row) for row in picture.tolist()]


def show_latencies(http_port: int) -> None:
    phases = scrape(f"http://127.0.0.1:{http_port}/metrics", MODEL).phases
    table = Table("phase", "p50", "p90", "p99", box=None, header_style="bold", pad_edge=False)
    for phase, buckets in phases.items():
        table.add_row(phase, *(f"{1000 * quantile(buckets, q):.2f} ms" for q in (0.5, 0.9, 0.99)))
    console.print(table)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
