"""Whether a server that has served for long holds more than one that has just begun.

Resident memory, open files and threads of `convoy serve` after a million calls, and after 10,000 cancelled calls and 10,000
connections that broke in the middle of a call, twice. How many calls it saw cancelled is read from its own metrics.

Usage: python -m tests.benchmarks.leaks [--transport fast] [--calls 1000000] [--model MODEL.onnx]
Needs h2load (Debian package nghttp2-client).
"""

import argparse
import json
import socket
import struct
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.progress import track
from rich.table import Table

from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.benchmarks import h2load
from tests.benchmarks.transport import make_repository, serving

CANCELLED = 10_000
BROKEN = 10_000
IN_FLIGHT = 200

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transport", choices=["fast", "public"], default="fast")
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--model", type=Path, help="a digits model; trained afresh if not given")
    arguments = parser.parse_args()
    h2load.needed()
    table = Table("after", "RSS MB", "open files", "threads", box=None)
    with tempfile.TemporaryDirectory() as folder:
        repository = make_repository(Path(folder), arguments.model)
        request = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(784))])
        body = Path(folder) / "body"
        body.write_bytes(h2load.framed(request))
        with serving(f"Convoy {arguments.transport}", repository, Path(folder)) as (port, pid):
            http_port = json.loads((Path(folder) / "ready").read_text())["http_port"]

            def note(stage: str) -> None:
                time.sleep(2)  # what is on its way out may leave
                status = Path(f"/proc/{pid}/status").read_text()
                field = {name: int(status.split(f"{name}:")[1].split()[0]) for name in ("VmRSS", "Threads")}
                files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
                table.add_row(stage, f"{field['VmRSS'] / 1024:.1f}", str(files), str(field["Threads"]))
                console.print(f"{stage}: {field['VmRSS'] / 1024:.1f} MB, {files} files, {field['Threads']} threads", style="dim")

            note("start")
            h2load.load(port, body, 8, 8, calls=50_000)
            note("50,000 calls")
            h2load.load(port, body, 8, 8, calls=arguments.calls)
            note(f"{arguments.calls:,} calls more")
            for _ in range(2):
                before = seen_cancelled(http_port)
                cancel(port)
                note(f"{seen_cancelled(http_port) - before:,} cancelled calls")
                before = seen_cancelled(http_port)
                break_connections(port, request.SerializeToString())
                note(f"{BROKEN:,} broken connections ({seen_cancelled(http_port) - before:,} calls seen cancelled)")
            h2load.load(port, body, 8, 8, calls=50_000)
            note("50,000 calls more")
    console.print(table)


def seen_cancelled(http_port: int) -> int:
    """How many calls the server has seen cancelled so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    counts = [line.rsplit(" ", 1)[1] for line in lines if line.startswith("grpc_server_handled_total") and '"CANCELLED"' in line]
    return int(sum(float(count) for count in counts))


def cancel(port: int) -> None:
    """Opens calls that stand open (health watches) and cancels them."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for _ in track(range(CANCELLED // IN_FLIGHT), "cancelling", console=console, transient=True):
            watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(IN_FLIGHT)]
            for watch in watches:
                next(watch)
            for watch in watches:
                watch.cancel()


def half_a_call(path: str, message: bytes) -> bytes:
    """The bytes of a connection that begins a call and stops in the middle of its message."""
    headers = b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value  # HPACK: literals that are not indexed
        for name, value in (
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"x"),
            (b"content-type", b"application/grpc"), (b"te", b"trailers"),
        )
    )  # fmt: skip

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload

    half = (struct.pack(">BI", 0, len(message)) + message)[: len(message) // 2]
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, headers) + frame(0, 0, 1, half)


def break_connections(port: int, message: bytes) -> None:
    """Opens connections, begins a call on each, sends half of its message and resets the connection."""
    begun = half_a_call("/convoy.v1.Classifier/Classify", message)
    for _ in track(range(BROKEN // IN_FLIGHT), "breaking", console=console, transient=True):
        opened = [socket.create_connection(("127.0.0.1", port)) for _ in range(IN_FLIGHT)]
        for connection in opened:
            connection.sendall(begun)
        time.sleep(0.1)
        for connection in opened:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()


if __name__ == "__main__":
    main()
