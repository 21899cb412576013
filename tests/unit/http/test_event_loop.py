"""The HTTP port's event loop: connections and their limits, with an application of the test's own."""

import contextlib
import errno
import http.client
import resource
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from werkzeug.wrappers import Response

from service.http import event_loop
from service.http.event_loop import EventLoopServer
from service.http.http1 import UNCOUNTED_BYTES, Connection
from service.requests.byte_budget import ByteBudget
from service.sockets import listeners
from tests.lack_of_threads import no_more_threads

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


Port = Callable[..., int]


@pytest.fixture
def port() -> Iterator[Port]:
    """Serves an application on a port of its own."""
    started: list[tuple[EventLoopServer, threading.Thread]] = []

    def start(
        application: "WSGIApplication", threads: int = 1, idle_seconds: float = 75, listener: Any = None, **settings: Any
    ) -> int:
        listener = listener or socket.create_server(("127.0.0.1", 0))
        server = EventLoopServer(application, [listener], threads, 2**20, idle_seconds, **settings)
        serving = threading.Thread(target=server.run)
        serving.start()
        started.append((server, serving))
        number: int = listener.getsockname()[1]
        return number

    yield start
    for server, serving in started:
        server.close()
        serving.join(10)
        assert not serving.is_alive()


REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connect(port: int, sent: bytes = b"") -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", port), timeout=20)
    opened.sendall(sent)
    return opened


def answer(connection: socket.socket) -> bytes:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.read()


def is_open(connection: socket.socket) -> bool:
    """Whether the server answers another request on the connection."""
    try:
        connection.sendall(REQUEST)
        return answer(connection) == b"served"
    except (ConnectionError, http.client.RemoteDisconnected):
        return False


def test_when_all_places_are_taken_the_longest_idle_connection_is_closed(
    port: Port, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(event_loop, "MAX_CONNECTIONS", 10)
    asked, finish = threading.Event(), threading.Event()

    def application(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/slow":
            asked.set()
            assert finish.wait(20)
        return Response("served")(environ, start_response)

    served = port(application, threads=2, has_places_by_address=lambda _: False)
    running = connect(served, REQUEST.replace(b"/", b"/slow", 1))
    assert asked.wait(20)
    idle = []
    for _ in range(20):
        idle.append(connect(served, REQUEST))
        assert answer(idle[-1]) == b"served"
    finish.set()
    assert answer(running) == b"served", "it has been open for longest"
    kept = [is_open(each) for each in idle]
    assert kept == sorted(kept), "the oldest were closed"
    assert 0 < sum(kept) < 10
    messages = [record.getMessage() for record in caplog.records if record.name == event_loop.__name__]
    assert messages == ["10 HTTP connections are open, the most: the longest idle one is closed for the next"]
    for each in (running, *idle):
        each.close()


def test_a_request_that_arrives_byte_by_byte_counts_as_idle(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_loop, "MAX_CONNECTIONS", 10)
    served = port(Response("served"), has_places_by_address=lambda _: False)
    trickling = [connect(served, REQUEST[:1]) for _ in range(6)]
    others = [connect(served, REQUEST)]
    assert answer(others[0]) == b"served"
    for byte in REQUEST[1:5]:
        for each in trickling:
            with contextlib.suppress(ConnectionError):
                each.sendall(bytes([byte]))
        others.append(connect(served, REQUEST))
        assert answer(others[-1]) == b"served"
    assert all(map(is_open, others))
    for each in (*trickling, *others):
        each.close()


def test_no_thread_waits_for_a_client_that_does_not_read(port: Port) -> None:
    answered = 0

    def application(environ: Any, start_response: Any) -> Any:
        nonlocal answered
        answered += environ["PATH_INFO"] == "/deaf"
        return Response(bytes(2**20))(environ, start_response)

    served = port(application)
    asked = REQUEST.replace(b"/", b"/deaf", 1)
    last = asked.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with connect(served, asked * 99 + last) as deaf, connect(served) as other:
        for _ in range(50):  # the one thread answers both in turns
            other.sendall(REQUEST)
            assert len(answer(other)) == 2**20
        assert answered < 50, "no further answer is made for it before it has read those that were"
        received = 0
        while data := deaf.recv(2**20):
            received += len(data)
    assert received > 100 * 2**20
    assert answered == 100


def test_a_connection_without_traffic_is_closed_after_the_time_that_was_set(port: Port) -> None:
    served = port(Response("served"), idle_seconds=1)
    with connect(served, REQUEST) as idle:
        assert answer(idle) == b"served"
        assert idle.recv(1) == b""


def test_half_of_the_file_descriptors_are_for_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most in ((256, 128), (100_000, 1000), (resource.RLIM_INFINITY, 1000)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert event_loop.max_connections() == most


class Refusing(socket.socket):
    """A listener that lacks file descriptors at first."""

    refusals: ClassVar[list[int]] = [errno.EMFILE, errno.ENFILE, errno.EMFILE]

    def accept(self) -> tuple[socket.socket, Any]:
        if self.refusals:
            raise OSError(self.refusals.pop(), "Too many open files")
        return super().accept()


def test_without_file_descriptors_accepting_pauses_with_one_line_in_the_log(
    port: Port, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(event_loop, "ACCEPT_PAUSE_SECONDS", 0.001)
    listener = Refusing()
    listener.bind(("127.0.0.1", 0))
    served = port(Response("served"), listener=listener)
    with urllib.request.urlopen(f"http://127.0.0.1:{served}/", timeout=10) as response:
        assert response.read() == b"served"
    assert not listener.refusals
    assert [record.getMessage() for record in caplog.records if record.name == event_loop.__name__] == [
        "out of file descriptors, new HTTP connections wait: Too many open files"
    ]


def test_the_port_is_free_for_the_next_server_at_once() -> None:
    """The server ends the connections, which then stay in the system for a minute; and a child process has none of its sockets."""
    port = 0
    children = []
    for _ in range(2):
        bound = listeners.bind(["127.0.0.1"], port, "HTTP")
        port = bound[0].getsockname()[1]
        server = EventLoopServer(Response("served"), bound, 1, 2**20, 75)
        serving = threading.Thread(target=server.run)
        serving.start()
        with connect(port, REQUEST) as kept, connect(port, REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as ended:
            assert answer(kept) == answer(ended) == b"served"
            assert ended.recv(1) == b""
            children.append(
                subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
            )  # fmt: skip
            server.close()
            assert kept.recv(1) == b""
        serving.join(10)
        assert not serving.is_alive()
    for child in children:
        child.communicate(b"\n", timeout=20)
        assert child.returncode == 0


def test_neither_other_requests_nor_scrapes_keep_a_probe_waiting(port: Port) -> None:
    held = threading.Event()

    def application(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] != "/livez":
            assert held.wait(60)
        return Response(environ["PATH_INFO"])(environ, start_response)

    served = port(application, threads=2)
    with contextlib.ExitStack() as stack:
        waiting = []
        for path in ["/metrics"] * 6 + ["/v2"] * 6:
            connection = http.client.HTTPConnection("127.0.0.1", served, timeout=60)
            stack.callback(connection.close)
            connection.request("GET", path)
            waiting.append(connection)
        probe = http.client.HTTPConnection("127.0.0.1", served, timeout=60)
        stack.callback(probe.close)
        for _ in range(3):
            probe.request("GET", "/livez")
            assert probe.getresponse().read() == b"/livez"
        held.set()
        assert [connection.getresponse().read() for connection in waiting] == [b"/metrics"] * 6 + [b"/v2"] * 6


def test_without_a_thread_a_request_is_refused_and_the_next_one_answered(port: Port) -> None:
    def answers(sent: bytes, count: int, each: bytes) -> bytes:
        connection.sendall(sent * count)
        received = b""
        while received.count(each) < count:
            received += connection.recv(65536)
        return received

    at = port(Response(b"served"), threads=2)
    with no_more_threads("http-"):
        connection = connect(at)
        assert answers(REQUEST, 1500, b"can start no thread").count(b"HTTP/1.1 503 ") == 1500  # more than Python may recurse
    answers(REQUEST, 20, b"served")
    with no_more_threads("http-"):
        answers(REQUEST, 20, b"served")
    connection.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[EventLoopServer, int]]]:
    """Serves an application, and gives the server itself."""
    with contextlib.ExitStack() as stack:

        def start(application: "WSGIApplication", threads: int = 1, **settings: Any) -> tuple[EventLoopServer, int]:
            listener = socket.create_server(("127.0.0.1", 0))
            number: int = listener.getsockname()[1]
            server = EventLoopServer(application, [listener], threads, 2**20, settings.pop("idle_seconds", 75), **settings)
            serving = threading.Thread(target=server.run)
            serving.start()
            stack.callback(serving.join, 10)
            stack.callback(server.close)
            return server, number

        yield start


def test_requests_that_never_end_keep_the_port_open_no_longer_for_being_many() -> None:
    """Threads were waited for one after the other: 40 s here."""
    held, running = threading.Event(), threading.Semaphore(0)

    def application(environ: Any, start_response: Any) -> Any:
        running.release()
        assert held.wait(60)
        return Response("served")(environ, start_response)

    listener = socket.create_server(("127.0.0.1", 0))
    server = EventLoopServer(application, [listener], 40, 2**20, 75)
    serving = threading.Thread(target=server.run)
    serving.start()
    with contextlib.ExitStack() as stack:
        stack.callback(held.set)
        for _ in range(40):
            stack.enter_context(connect(listener.getsockname()[1], REQUEST))
            assert running.acquire(timeout=20)
        server.close()
        serving.join(20)
        assert not serving.is_alive()


def test_without_a_thread_a_request_gives_back_what_it_took(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    budget = ByteBudget(2**20)
    _, port = serve(Response("served"), budget=budget)
    post = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
    with connect(port) as connection:
        with no_more_threads("http-"):
            for _ in range(3):
                connection.sendall(post)
                assert b"can start no thread" in answer(connection)
        assert budget.in_flight_bytes == 0
        connection.sendall(post)
        assert answer(connection) == b"served"
    assert [record.getMessage() for record in caplog.records] == ["no thread http-1 can be started: can't start new thread"]


def once(function: Any) -> Any:
    """A function that lacks memory the first time."""
    calls: list[None] = []

    def lacking(*arguments: Any, **named: Any) -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise MemoryError
        return function(*arguments, **named)

    return lacking


def test_a_lack_of_memory_ends_neither_the_checks_nor_the_closing(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "check", once(Connection.check))
    _, port = serve(Response("served"), idle_seconds=1)
    with connect(port, REQUEST) as first, connect(port, REQUEST) as second:
        assert answer(first) == answer(second) == b"served"
        assert first.recv(1) == second.recv(1) == b"", "both are closed, one for the error and one for being idle"
    listener = socket.create_server(("127.0.0.1", 0))
    server = EventLoopServer(Response("served"), [listener], 1, 2**20, 75)
    monkeypatch.setattr(server, "_hang_up", once(server._hang_up))
    serving = threading.Thread(target=server.run)
    serving.start()
    with connect(listener.getsockname()[1], REQUEST) as idle:
        assert answer(idle) == b"served"
        server.close()
        serving.join(20)
        assert not serving.is_alive()


def test_a_connection_that_memory_does_not_suffice_for_keeps_no_place(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server, port = serve(Response("served"))
    create_task = once(server.loop.create_task)

    def closing(coroutine: Any) -> Any:
        try:
            return create_task(coroutine)
        except MemoryError:
            coroutine.close()
            raise

    monkeypatch.setattr(server.loop, "create_task", closing)
    with connect(port, REQUEST) as lost, connect(port, REQUEST) as kept:
        with contextlib.suppress(ConnectionError):
            assert lost.recv(1) == b""
        assert answer(kept) == b"served"
        assert len(server.connections) == 1


def test_little_is_held_of_requests_that_wait_for_the_one_before(serve: Any) -> None:
    asked, finish = threading.Event(), threading.Event()

    def application(environ: Any, start_response: Any) -> Any:
        asked.set()
        assert finish.wait(60)
        return Response("served")(environ, start_response)

    server, port = serve(application)
    with contextlib.ExitStack() as stack:
        stack.callback(finish.set)
        connection = stack.enter_context(connect(port, REQUEST))
        assert asked.wait(20)
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                connection.send(REQUEST * 1000)
        with connect(port, REQUEST):  # the loop has gone on
            while len(server.connections) < 2:
                assert threading.Event().wait(0.01) is False
        [held] = [len(each._buffer) for each in server.connections if each._buffer]
        assert 0 < held <= UNCOUNTED_BYTES
