"""Attacks on the HTTP port. Each runs until a time on the monotonic clock, and returns what it has sent in words."""

import gzip
import http.client
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress

from tests import refusals
from tests.attack.target import Target, discard

MIB = 2**20
IDLE = 1200
STALLED = 20
DECLARED = 90_000_000
INFER = "/v2/models/digits/infer"


def _connect(target: Target) -> socket.socket:
    return socket.create_connection(("127.0.0.1", target.http_port), timeout=1)


def _head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def _hold(target: Target, until: float, count: int, sent: bytes, trickle: bytes = b"", *, read: bool = True) -> str:
    """Opens connections that send something and wait; then each sends `trickle` now and then. Those that are closed come again."""
    opened = 0
    held: list[socket.socket] = []
    with ExitStack() as stack:
        stack.callback(lambda: _close(held))
        while time.monotonic() < until:
            while len(held) < count and time.monotonic() < until:
                try:
                    connection = _connect(target)
                    held.append(connection)
                    opened += 1
                    connection.sendall(sent)
                except OSError:  # the server has closed it, or reads no further
                    break
            time.sleep(0.05)
            held = [each for each in held if _is_open(each, trickle, read=read)]
    return f"{opened:,} connections, {count:,} at a time"


def _close(connections: list[socket.socket]) -> None:
    for each in connections:
        each.close()


def _is_open(connection: socket.socket, trickle: bytes, *, read: bool) -> bool:
    try:
        if trickle:
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.send(trickle)
        if read:
            discard(connection)
    except OSError:
        connection.close()
        return False
    return True


def idle(target: Target, until: float) -> str:
    """More connections than the port has places, which send nothing."""
    return _hold(target, until, IDLE, b"")


def trickling(target: Target, until: float) -> str:
    """As many whose header never ends."""
    return _hold(target, until, IDLE, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ", b"a")


def stalled_bodies(target: Target, until: float) -> str:
    """Bodies of 90 MB that stop after 8 MiB."""
    begun = _head("POST", INFER, f"Content-Length: {DECLARED}") + bytes(8 * MIB)
    return _hold(target, until, STALLED, begun, b"a")


def stalled_elsewhere(target: Target, until: float) -> str:
    """The same for a path that does not exist."""
    begun = _head("POST", "/no/such/path", f"Content-Length: {DECLARED}") + bytes(8 * MIB)
    return _hold(target, until, STALLED, begun, b"a")


def unread(target: Target, until: float) -> str:
    """Clients that send many requests and read no answer."""
    return _hold(target, until, 100, _head("GET", "/metrics") * 50, _head("GET", "/metrics"), read=False)


def _in_threads(until: float, requests: Callable[[int], Iterable[tuple[str, bytes, dict[str, str]]]], target: Target) -> int:
    """Sends requests in eight threads, each on connections of its own; returns how many were answered or cut off."""
    sent = itertools.count()

    def run(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", target.http_port, timeout=30)
        for path, body, headers in requests(number):
            if time.monotonic() >= until:
                break
            try:
                connection.request("POST", path, body, headers)
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                connection.close()
            next(sent)
        connection.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return next(sent)


def json_bombs(target: Target, until: float) -> str:
    """JSON of up to 48 MiB, some of it compressed to a thousandth: numbers, empty objects, nested arrays."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": []}
    head, tail = json.dumps({"inputs": [tensor]}).split("[]}]")
    count = 16 * MIB
    numbers = f"{head}[{'1,' * count}1]}}]{tail}".encode()
    objects = f"{head}[{'{},' * count}0]}}]{tail}".encode()
    nested = b"[" * count
    bodies: list[tuple[str, bytes, dict[str, str]]] = [
        (INFER, gzip.compress(numbers, 1), {"Content-Encoding": "gzip"}),
        (INFER, objects, {}),
        (INFER, gzip.compress(objects, 1), {"Content-Encoding": "gzip"}),
        (INFER, nested, {}),
    ]
    sent = _in_threads(until, lambda number: itertools.cycle(bodies[number % 4 :] + bodies[: number % 4]), target)
    return f"{sent} bodies, unfolded 16 to 48 MiB each"


def refused(target: Target, until: float) -> str:
    """Requests that REST refuses, of every kind."""
    requests = [(path, body, headers) for path, body, headers, _ in refusals.REST_REQUESTS.values()]
    return f"{_in_threads(until, lambda _: itertools.cycle(requests), target):,} requests"


MALFORMED = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100),
    b"GET  HTTP/1.1\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    b"GET /livez HTTP/1.1\r\n\r\n",
    b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 70_000,
    b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"x" * 70_000,
    b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
    b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /%00%ff%0d%0a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\r\n" * 10_000,
    bytes(10_000),
)


def malformed(target: Target, until: float) -> str:
    """Requests that are not HTTP, or end where another reader would say that they do not."""
    sent = 0
    for request in itertools.cycle(MALFORMED):
        if time.monotonic() >= until:
            break
        with suppress(OSError), _connect(target) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        sent += 1
    return f"{sent:,} requests"
