"""Whether a server that has served for long holds more than one that has just begun.

Resident memory, open files and threads of `convoy serve`, of all its processes together, after

    calls      a million calls, and, twice, 10,000 cancelled calls and 10,000 connections that broke in the middle of a call; how
               many calls it saw cancelled is read from its own metrics
    refusals   10,000 requests of every kind that is refused, of `tests/refusals.py`
    reloads    200 new versions of a model of digits, and of one of 10 MB, with calls over gRPC and HTTP between them

Usage: python -m tests.benchmarks.leaks [calls refusals reloads] [--transport fast] [--workers 1] [--model MODEL.onnx]
           [--calls 1000000] [--refusals 10000] [--reloads 200]
`calls` needs h2load (Debian package nghttp2-client).
"""

import argparse
import contextlib
import json
import shutil
import socket
import struct
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import onnx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto, helper
from rich.console import Console
from rich.progress import track
from rich.table import Table

from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from tests import refusals
from tests.benchmarks import h2load
from tests.benchmarks.transport import make_repository, serving

CANCELLED = 10_000
BROKEN = 10_000
IN_FLIGHT = 200

console = Console(highlight=False, soft_wrap=True)


class Watched(NamedTuple):
    """A server: its ports, and `note`, which adds a row with what it holds now to the table."""

    grpc_port: int
    http_port: int
    note: Callable[[str], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*PARTS, []], help="the parts to run; all of them if not given")
    parser.add_argument("--transport", choices=["fast", "public"], default="fast")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--refusals", type=int, default=10_000, help="requests of each kind")
    parser.add_argument("--reloads", type=int, default=200, help="new versions of each model")
    parser.add_argument("--model", type=Path, help="a digits model; trained afresh if not given")
    arguments = parser.parse_args()
    table = Table("after", "RSS MB", "open files", "threads", box=None)
    for part in arguments.what or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[part](arguments, Path(folder), table)
    console.print(table)


def counted(numbers: range, what: str) -> Iterable[int]:
    """The numbers, with a progress bar on a terminal."""
    return track(numbers, what, console=console, transient=True, disable=not console.is_terminal)


@contextlib.contextmanager
def watched(arguments: argparse.Namespace, repository: Path, folder: Path, table: Table, *options: str) -> Iterator[Watched]:
    """A server of a repository."""
    options = ("--workers", str(arguments.workers), *options)
    with serving(f"Convoy {arguments.transport}", repository, folder, *options) as (port, pid):

        def note(stage: str) -> None:
            time.sleep(2)  # what is on its way out may leave
            processes = [Path(f"/proc/{each}") for each in (pid, *children(pid))]
            statuses = [(process / "status").read_text() for process in processes]
            resident, threads = (
                [int(status.split(f"{name}:")[1].split()[0]) for status in statuses] for name in ("VmRSS", "Threads")
            )
            files = sum(len(list((process / "fd").iterdir())) for process in processes)
            row = stage, f"{sum(resident) / 1024:.1f}", str(files), str(sum(threads))
            table.add_row(*row)
            console.print("  ".join(row), style="dim")

        yield Watched(port, json.loads((folder / "ready").read_text())["http_port"], note)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def after_calls(arguments: argparse.Namespace, folder: Path, table: Table) -> None:
    """Many calls, cancelled calls, broken connections."""
    h2load.needed()
    repository = make_repository(folder, arguments.model)
    request = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(784))])
    body = folder / "body"
    body.write_bytes(h2load.framed(request))
    with watched(arguments, repository, folder, table) as (port, http_port, note):
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


def after_refusals(arguments: argparse.Namespace, folder: Path, table: Table) -> None:
    """Every kind of refusal."""
    repository = refusals.make_repository(folder / "refusing", make_repository(folder, arguments.model) / "digits/1/model.onnx")
    options = ("--max-message-bytes", str(refusals.MAX_MESSAGE_BYTES), "--log-level", "error")
    with (
        watched(arguments, repository, folder, table, *options) as (port, http_port, note),
        refusals.Clients(port, http_port) as clients,
    ):
        for refusal in refusals.REFUSALS:  # once, which fills caches
            refusal.send(clients)
        note("one refusal of each kind")
        for surface in dict.fromkeys(refusal.surface for refusal in refusals.REFUSALS):
            kinds = [refusal for refusal in refusals.REFUSALS if refusal.surface == surface]
            for refusal in kinds:
                for _ in counted(range(arguments.refusals), str(refusal)):
                    clients.keep_full()
                    refusal.send(clients)
            note(f"{surface}: {len(kinds)} kinds, {arguments.refusals:,} refusals of each")


def after_reloads(arguments: argparse.Namespace, folder: Path, table: Table) -> None:
    """New versions of a small model, and of one whose weights are in pieces of half a megabyte."""
    repository = make_repository(folder, arguments.model)
    (repository / "convolutions" / "1").mkdir(parents=True)
    make_convolutions(repository / "convolutions" / "1" / "model.onnx")
    with (
        watched(arguments, repository, folder, table) as (port, http_port, note),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        requests = {"digits": classify_request(), "convolutions": infer_request()}
        for model, (path, request) in requests.items():
            note("start" if model == "digits" else "start of the second model")
            call: Any = channel.unary_unary(path)
            for version in counted(range(2, arguments.reloads + 2), model):
                publish(repository / model, version)
                post(http_port, f"/v2/repository/models/{model}/load", b"{}")
                for _ in range(10):
                    call(request, timeout=60)
                for path_of in ("/metrics", f"/v2/models/{model}", f"/v2/models/{model}/stats"):
                    urllib.request.urlopen(f"http://127.0.0.1:{http_port}{path_of}", timeout=60).close()
                if version in (11, arguments.reloads // 2 + 1, arguments.reloads + 1):
                    note(f"{version - 1} reloads of {model}")


def publish(model: Path, version: int) -> None:
    """Copies the version before to a new one, and deletes that before it."""
    staging = model / ".staging"
    shutil.copytree(model / str(version - 1), staging)
    staging.rename(model / str(version))
    shutil.rmtree(model / str(version - 2), ignore_errors=True)


def post(http_port: int, path: str, body: bytes) -> None:
    """Sends a POST request."""
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}{path}", body, timeout=60) as response:
        response.read()


def classify_request() -> tuple[str, bytes]:
    """A call to the model of digits."""
    return refusals.CLASSIFY, pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(784))] * 8).SerializeToString()


def infer_request() -> tuple[str, bytes]:
    """A call to the model of convolutions."""
    images = np.zeros((2, CHANNELS, 14, 14), np.float32)
    tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=images.shape)
    request = oip.ModelInferRequest(model_name="convolutions", inputs=[tensor], raw_input_contents=[images.tobytes()])
    return refusals.INFER, request.SerializeToString()


CHANNELS = 128


def make_convolutions(path: Path) -> None:
    """A model without a contract: 18 convolutions of 3x3, 10 MB."""
    random = np.random.default_rng(0)
    weights = [(random.random((CHANNELS, CHANNELS, 3, 3)) / CHANNELS / 9).astype(np.float32) for _ in range(18)]
    nodes, last = [], "x"
    for layer in range(len(weights)):
        nodes.append(helper.make_node("Conv", [last, f"weight{layer}"], [f"raw{layer}"], auto_pad="SAME_UPPER"))
        nodes.append(helper.make_node("Relu", [f"raw{layer}"], [f"out{layer}"]))
        last = f"out{layer}"
    nodes += [helper.make_node("GlobalAveragePool", [last], ["pooled"]), helper.make_node("Flatten", ["pooled"], ["scores"])]
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, 14, 14])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CHANNELS])],
        [onnx.numpy_helper.from_array(weight, f"weight{layer}") for layer, weight in enumerate(weights)],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


PARTS: dict[str, Callable[[argparse.Namespace, Path, Table], None]] = {
    "calls": after_calls,
    "refusals": after_refusals,
    "reloads": after_reloads,
}


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
        for _ in counted(range(CANCELLED // IN_FLIGHT), "cancelling"):
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
    for _ in counted(range(BROKEN // IN_FLIGHT), "breaking"):
        opened = [socket.create_connection(("127.0.0.1", port)) for _ in range(IN_FLIGHT)]
        for connection in opened:
            connection.sendall(begun)
        time.sleep(0.1)
        for connection in opened:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()


if __name__ == "__main__":
    main()
