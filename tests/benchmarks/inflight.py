"""Memory of a server, and the calls of a polite client, while others send what is large, compressed, stalled or full of nothing.

Each mix goes to a server of its own. A polite client in a process of its own sends 50 calls a second all the while. RSS is the
process's resident memory; the peak is the kernel's. The server takes 1 GiB for its limit (`ulimit -m`), or what --limit says.

Usage: python -m tests.benchmarks.inflight [--only MIX] [--transport fast|public] [--tree CHECKOUT] [--model MODEL.onnx]
"""

import argparse
import contextlib
import gzip
import http.client
import json
import math
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from tests.benchmarks.memory import memory
from tests.benchmarks.transport import make_repository
from tests.integration.http2 import DATA, END_HEADERS, HEADERS, SETTINGS, Frame, literals

MIB = 1024 * 1024
CLASSIFY = "/convoy.v1.Classifier/Classify"
INFER = "/inference.GRPCInferenceService/ModelInfer"
LARGE_BYTES = 90 * 10**6
WINDOW_UPDATE = 8
POLITE = """
import json, sys, time
import grpc
port, seconds = int(sys.argv[1]), float(sys.argv[2])
from service.pb.convoy.v1 import classifier_pb2 as pb
message = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(784))]).SerializeToString()
latencies, failed = [], 0
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    classify = channel.unary_unary("/convoy.v1.Classifier/Classify")
    due = time.monotonic()
    end = due + seconds
    print("ready", flush=True)
    while (due := due + 0.02) < end:
        time.sleep(max(0.0, due - time.monotonic()))
        start = time.monotonic()
        try:
            classify(message, timeout=30)
        except grpc.RpcError:
            failed += 1
        latencies.append(time.monotonic() - start)
print(json.dumps([latencies, failed]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MIXES, help="one mix")
    parser.add_argument("--transport", choices=["fast", "public"], default="fast")
    parser.add_argument("--tree", type=Path, default=Path.cwd(), help="the checkout whose server is measured")
    parser.add_argument("--model", type=Path, help="a digits model; trained afresh if not given")
    parser.add_argument("--limit", type=int, default=1024, help="the server's memory limit in MiB")
    parser.add_argument("--seconds", type=float, default=12.0, help="of the polite client, for each mix")
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    table = Table("mix", "RSS before", "peak", "after", "polite calls", "failed", "p99 ms", "slowest ms", "outcomes", box=None)
    with tempfile.TemporaryDirectory() as folder:
        repository = make_repository(Path(folder), arguments.model)
        for name, mix in MIXES.items():
            if arguments.only in (None, name):
                row = measure(name, mix, repository, Path(folder), arguments)
                console.print("  ".join(row), style="dim")
                table.add_row(*row)
    console.print(table)


def measure(name: str, mix: "Mix", repository: Path, folder: Path, arguments: argparse.Namespace) -> tuple[str, ...]:
    """Sends one mix to a server of its own; a row of the table."""
    with serving(repository, folder, arguments) as (ports, pid):
        grpc_port = ports["grpc_port"]
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        polite = subprocess.Popen(
            [sys.executable, "-c", POLITE, str(grpc_port), str(arguments.seconds)],
            stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert polite.stdout is not None
        polite.stdout.readline()
        time.sleep(1)
        before = memory(pid)["VmRSS"]
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak counts from now on
        outcomes = mix(ports, arguments.seconds - 4)
        latencies, failed = json.loads(polite.communicate()[0])
        after = memory(pid)
    latencies.sort()
    counted = ", ".join(f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes))
    figures = (before, after["VmHWM"], after["VmRSS"])
    times = (latencies[math.ceil(0.99 * len(latencies)) - 1], latencies[-1])
    return (name, *(f"{each:.0f}" for each in figures), str(len(latencies)), str(failed), *(f"{1e3 * each:.0f}" for each in times),
            counted)  # fmt: skip


@contextlib.contextmanager
def serving(repository: Path, folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[dict[str, int], int]]:
    """Starts a server of a checkout; gives its ports and pid."""
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    limit = arguments.limit * MIB
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", str(repository), "--grpc-port", "0", "--http-port", "0", "--provider", "cpu",
         "--transport", arguments.transport, "--log-level", "error", "--ready-file", str(ready)],
        cwd=arguments.tree, env={**os.environ, "PYTHONPATH": str(arguments.tree)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_RSS, (limit, limit)),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (ready.exists() and ready.read_text()):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("the server did not start")
            time.sleep(0.02)
        yield json.loads(ready.read_text()), process.pid
    finally:
        process.terminate()
        process.wait(60)


Mix = Callable[[dict[str, int], float], list[str]]


def over_grpc(path: str, message: bytes, count: int) -> Mix:
    """Sends a message several times at once, over connections of their own."""

    def send(ports: dict[str, int], seconds: float) -> list[str]:
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        with contextlib.ExitStack() as stack:
            target = f"127.0.0.1:{ports['grpc_port']}"
            channels = [stack.enter_context(grpc.insecure_channel(target, options)) for _ in range(min(count, 8))]
            methods: list[Any] = [channel.unary_unary(path) for channel in channels]
            calls = [methods[number % len(methods)].future(message, timeout=seconds) for number in range(count)]
            return [call.code().name for call in calls if call.exception() or True]

    return send


def compressed(path: str, message: Callable[[], bytes], count: int) -> Mix:
    """Sends a message as gRPC sends one that is compressed: by hand, because its client would compress it anew each time."""

    def send(ports: dict[str, int], seconds: float) -> list[str]:
        folded = gzip.compress(message(), 6)
        outcomes: list[str] = []
        senders = [Connection(ports["grpc_port"], path, folded, folded_flag=1) for _ in range(count)]
        run_together([partial_run(sender, seconds, outcomes) for sender in senders])
        return outcomes

    return send


def stalled(path: str, size: int, count: int) -> Mix:
    """Begins calls and leaves out the last byte of their messages."""

    def send(ports: dict[str, int], seconds: float) -> list[str]:
        message = pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=bytes(size))]).SerializeToString()
        outcomes: list[str] = []
        senders = [Connection(ports["grpc_port"], path, message, missing=1) for _ in range(count)]
        run_together([partial_run(sender, seconds, outcomes) for sender in senders])
        return outcomes

    return send


def over_http(body: Callable[[], bytes], headers: dict[str, str], count: int) -> Mix:
    """Posts a body several times at once."""

    def send(ports: dict[str, int], seconds: float) -> list[str]:
        outcomes: list[str] = []
        content = body()

        def post() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", ports["http_port"], timeout=seconds)
            try:
                connection.request("POST", "/v2/models/digits/infer", content, headers)
                outcomes.append(str(connection.getresponse().status))
            except OSError as error:
                outcomes.append(type(error).__name__)
            finally:
                connection.close()

        run_together([post] * count)
        return outcomes

    return send


class Connection:
    """A call on a connection of its own, sent frame by frame as far as the server's windows allow."""

    def __init__(self, port: int, path: str, message: bytes, *, folded_flag: int = 0, missing: int = 0) -> None:
        self._port, self._path = port, path
        self._left = memoryview(struct.pack(">BI", folded_flag, len(message)) + message)
        self._left = self._left[: len(self._left) - missing]
        self._complete = not missing
        self._encoding = [("grpc-encoding", "gzip")] if folded_flag else []

    def run(self, seconds: float) -> str:
        """Sends what it can; "ended" when the server has ended the call, "waiting" if it has not within the time."""
        headers = [(":method", "POST"), (":scheme", "http"), (":path", self._path), (":authority", "x"), ("te", "trailers"),
                   ("content-type", "application/grpc"), *self._encoding]  # fmt: skip
        deadline = time.monotonic() + seconds
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + framed(Frame(SETTINGS, 0, 0, b"")))
            connection.sendall(framed(Frame(HEADERS, END_HEADERS, 1, literals(headers))))
            windows = {0: 65535, 1: 65535}
            initial = 65535
            connection.settimeout(0.2)
            stream = connection.makefile("rb")
            while time.monotonic() < deadline:
                try:
                    initial = self._send(connection, windows, initial)
                    head = stream.read(9)
                except TimeoutError:
                    stream = connection.makefile("rb")
                    continue
                except OSError:
                    return "broken"
                if len(head) < 9:
                    return "broken"
                length, kind, flags, number = int.from_bytes(head[:3], "big"), head[3], head[4], int.from_bytes(head[5:], "big")
                payload = stream.read(length)
                if kind == WINDOW_UPDATE:
                    windows[number] += int.from_bytes(payload, "big")
                elif kind == SETTINGS and not flags & 1:
                    for at in range(0, length, 6):
                        key, value = struct.unpack_from(">HI", payload, at)
                        if key == 4:
                            windows[1] += value - initial
                            initial = value
                    connection.sendall(framed(Frame(SETTINGS, 1, 0, b"")))
                elif number == 1 and flags & 1:
                    return "ended"
        return "waiting"

    def _send(self, connection: socket.socket, windows: dict[int, int], initial: int) -> int:
        while self._left and min(windows.values()) > 0:
            size = min(16384, len(self._left), *windows.values())
            part, self._left = self._left[:size], self._left[size:]
            last = self._complete and not self._left
            connection.settimeout(20)
            connection.sendall(framed(Frame(DATA, int(last), 1, bytes(part))))
            connection.settimeout(0.2)
            for number in windows:
                windows[number] -= size
        return initial


def framed(frame: Frame) -> bytes:
    """The bytes of a frame."""
    return struct.pack(">I", len(frame.payload))[1:] + struct.pack(">BBI", *frame[:3]) + frame.payload


def partial_run(connection: Connection, seconds: float, outcomes: list[str]) -> Callable[[], None]:
    """Runs a connection, and notes how it ended."""
    return lambda: outcomes.append(connection.run(seconds))


def run_together(functions: Sequence[Callable[[], None]]) -> None:
    """Runs functions on threads of their own, to their end."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def zeros() -> bytes:
    """A picture that is none, of LARGE_BYTES."""
    return pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=bytes(LARGE_BYTES))]).SerializeToString()


def typed(field: str, values: int) -> bytes:
    """A tensor as typed contents."""
    contents = oip.InferTensorContents(**{field: [1] * values})  # type: ignore[arg-type]
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, values], contents=contents)
    return oip.ModelInferRequest(model_name="digits", inputs=[tensor]).SerializeToString()


def large_json() -> bytes:
    """A JSON of LARGE_BYTES, all zeros."""
    head = b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": ['
    return gzip.compress(head + b"0," * (LARGE_BYTES // 2) + b"0]}]}", 6)


def all_at_once(ports: dict[str, int], seconds: float) -> list[str]:
    """The others together."""
    outcomes: list[str] = []
    others = [mix for name, mix in MIXES.items() if name != "all of them"]
    run_together([lambda mix=mix: outcomes.extend(mix(ports, seconds)) for mix in others])  # type: ignore[misc]
    return outcomes


MIXES: dict[str, Mix] = {
    "8 x 16 MiB of empty items": over_grpc(CLASSIFY, b"\x1a\x00" * (8 * MIB), 8),
    "8 x 16 MiB of empty inputs": over_grpc(INFER, b"\x2a\x00" * (8 * MIB), 8),
    "8 x 16 MiB of typed numbers": over_grpc(INFER, typed("uint_contents", 16 * MIB), 8),
    "4 JSON of 90 MB, compressed": over_http(large_json, {"Content-Encoding": "gzip"}, 4),
    "32 gzip bombs of 90 MB": compressed(CLASSIFY, zeros, 32),
    "40 stalled messages of 90 MB": stalled(CLASSIFY, LARGE_BYTES, 40),
    "40 stalled streams of 90 MB": stalled("/convoy.v1.Classifier/ClassifyStream", LARGE_BYTES, 40),
    "16 pictures of 90 MB that are none": over_grpc(CLASSIFY, zeros(), 16),
    "all of them": all_at_once,
}


if __name__ == "__main__":
    main()
