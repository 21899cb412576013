"""What hostile pictures do to a server: its memory, with its decoding processes, its CPU, and a polite client's slowest call.

    python -m tests.benchmarks.hostile_pictures [--seconds-each 3] [--senders 8] [--output FILE.json]

For each kind, `senders` clients send it over and over for the time, while a polite client sends a small picture 50 times a second.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np

from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.hostile_pictures import HOSTILE, file_of

CLASSIFY = "/convoy.v1.Classifier/Classify"
CALL_SECONDS = 60.0


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model.onnx with a contract")
    parser.add_argument("--seconds-each", type=float, default=3.0)
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--kinds", nargs="*", default=list(HOSTILE))
    parser.add_argument("arguments", nargs="*", help="of convoy serve, behind --")
    options = parser.parse_args()
    titles = ("MB before", "MB peak", "MB after", "CPU s", "sent", "p99 ms", "max ms")
    say(f"{'kind':24} {'bytes':>9} " + " ".join(f"{title:>9}" for title in titles))
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        (repository / "m" / "1").mkdir(parents=True)
        (repository / "m" / "1" / "model.onnx").write_bytes(options.model.read_bytes())
        for kind in options.kinds:
            with serving(repository, Path(folder), options.arguments) as (pid, port):
                say(measure(kind, HOSTILE[kind](), pid, port, options.seconds_each, options.senders))


@contextlib.contextmanager
def serving(repository: Path, folder: Path, arguments: list[str]) -> Iterator[tuple[int, int]]:
    """A server of its own for each kind: its pid and gRPC port."""
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "service.cli", "serve", str(repository), "--grpc-port", "0", "--http-port", "0"]
    command += ["--ready-file", str(ready), "--log-level", "error", *arguments]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not ready.exists():
            time.sleep(0.05)
        yield process.pid, json.loads(ready.read_text())["grpc_port"]
        process.terminate()
        process.wait(60)


def measure(kind: str, encoded: bytes, pid: int, port: int, seconds: float, senders: int) -> str:
    """A line of the table."""
    ends = time.monotonic() + seconds
    sent = [0] * senders
    latencies: list[float] = []
    peak = before = memory(pid)
    cpu = cpu_seconds(pid)

    def be_hostile(index: int) -> None:
        with connection(port) as classify:
            while time.monotonic() < ends:
                with contextlib.suppress(grpc.RpcError):
                    classify(pb.ClassifyRequest(model="m", items=[pb.Item(encoded=encoded)]), timeout=CALL_SECONDS)
                sent[index] += 1

    def be_polite() -> None:
        from PIL import Image

        small = pb.ClassifyRequest(model="m", items=[pb.Item(encoded=file_of(Image.new("L", (28, 28)), "PNG"))])
        with connection(port) as classify:
            while time.monotonic() < ends or any(thread.is_alive() for thread in threads):
                start = time.monotonic()
                classify(small, timeout=CALL_SECONDS)
                latencies.append(time.monotonic() - start)
                time.sleep(max(0.0, 0.02 - latencies[-1]))

    threads = [threading.Thread(target=be_hostile, args=(index,)) for index in range(senders)]
    polite = threading.Thread(target=be_polite)
    for thread in (*threads, polite):
        thread.start()
    while polite.is_alive():
        peak = max(peak, memory(pid))
        time.sleep(0.02)
    p99, slowest = 1000 * np.quantile(latencies, 0.99), 1000 * max(latencies)
    spent = cpu_seconds(pid) - cpu
    figures = (before / 1e6, peak / 1e6, memory(pid) / 1e6, spent, sum(sent), p99, slowest)
    return f"{kind:24} {len(encoded):9} " + " ".join(f"{figure:9.0f}" for figure in figures)


def say(line: str) -> None:
    """Writes a line of the table."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def connection(port: int) -> "Iterator[grpc.UnaryUnaryMultiCallable[pb.ClassifyRequest, pb.ClassifyResponse]]":
    """The method Classify over a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        yield channel.unary_unary(CLASSIFY, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString)


def family(pid: int) -> list[int]:
    """A process and all that come of it."""
    found = [pid]
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def memory(pid: int) -> int:
    """Bytes that the server and its processes hold; shared pages once."""
    total = 0
    for each in family(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            total += 1024 * next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total


def cpu_seconds(pid: int) -> float:
    """CPU that the server has used, its ended processes included."""
    total = 0
    for each in family(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / 100


if __name__ == "__main__":
    main()
