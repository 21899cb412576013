"""The HTTP port's use of waitress, beyond what waitress promises."""

import contextlib
import errno
import http.client
import logging
import resource
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from waitress.server import TcpWSGIServer
from werkzeug.wrappers import Response

from service.http import waitress_server
from service.http.waitress_server import WaitressServer, untested_reason

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def test_the_installed_waitress_is_tested() -> None:
    assert untested_reason() == ""


@pytest.mark.parametrize(
    ("version", "tested"), [("2.1.2", False), ("3.0.0", True), ("3.0.12", True), ("3.1.0", False), ("4.0", False)]
)
def test_other_versions_are_named_in_the_log(
    version: str, tested: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waitress_server, "installed_version", lambda _: version)
    listener = socket.create_server(("127.0.0.1", 0))
    server = WaitressServer(lambda *_: [], [listener], threads=1, max_body_bytes=1, idle_seconds=75)
    with caplog.at_level(logging.WARNING):
        serving = threading.Thread(target=server.run)
        serving.start()
        server.close()
        serving.join(10)
    assert not serving.is_alive()
    expected = [] if tested else [f"the HTTP port may not work: waitress {version} is untested (tested: 3.0 to 3.0)"]
    assert [record.getMessage() for record in caplog.records] == expected


def test_without_file_descriptors_accepting_pauses_with_one_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = [errno.EMFILE, errno.ENFILE, errno.EMFILE]
    accept = TcpWSGIServer.accept

    def accept_later(server: Any) -> Any:
        if refusals:
            raise OSError(refusals.pop(), "Too many open files")
        return accept(server)

    monkeypatch.setattr(TcpWSGIServer, "accept", accept_later)
    monkeypatch.setattr(waitress_server, "ACCEPT_PAUSE_SECONDS", 0.001)
    listener = socket.create_server(("127.0.0.1", 0))
    server = WaitressServer(Response("served"), [listener], threads=1, max_body_bytes=1, idle_seconds=75)
    serving = threading.Thread(target=server.run)
    serving.start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=10) as response:
            assert response.read() == b"served"
    finally:
        server.close()
        serving.join(10)
    assert not refusals
    assert [record.getMessage() for record in caplog.records if record.name == waitress_server.__name__] == [
        "out of file descriptors, new HTTP connections wait: Too many open files"
    ]


Port = Callable[..., int]


@pytest.fixture
def port() -> Iterator[Port]:
    """Serves an application on a port of its own."""
    started: list[tuple[WaitressServer, threading.Thread]] = []

    def start(application: "WSGIApplication", threads: int = 1, idle_seconds: float = 75) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        server = WaitressServer(application, [listener], threads, 2**20, idle_seconds)
        serving = threading.Thread(target=server.run)
        serving.start()
        started.append((server, serving))
        number: int = listener.getsockname()[1]
        return number

    yield start
    for server, serving in started:
        server.close()
        serving.join(10)


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
    monkeypatch.setattr(waitress_server, "MAX_CONNECTIONS", 10)
    asked, finish = threading.Event(), threading.Event()

    def application(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/slow":
            asked.set()
            assert finish.wait(20)
        return Response("served")(environ, start_response)

    served = port(application, threads=2)
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
    messages = [record.getMessage() for record in caplog.records if record.name == waitress_server.__name__]
    assert messages == ["10 HTTP connections are open, the most: the longest idle one is closed for the next"]
    for each in (running, *idle):
        each.close()


def test_a_request_that_arrives_byte_by_byte_counts_as_idle_after_some_time(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waitress_server, "MAX_CONNECTIONS", 10)
    monkeypatch.setattr(waitress_server, "SLOW_CLIENT_SECONDS", 0)
    served = port(Response("served"))
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
    served = port(Response(bytes(2**20)))
    with connect(served, REQUEST * 100) as deaf, connect(served) as other:
        for _ in range(50):  # the one thread answers both in turns
            other.sendall(REQUEST)
            assert len(answer(other)) == 2**20
        received = 0
        while data := deaf.recv(2**20):
            received += len(data)
        assert received < 50 * 2**20, "the connection was closed before all was answered"


def test_a_connection_without_traffic_is_closed_after_the_time_that_was_set(port: Port) -> None:
    served = port(Response("served"), idle_seconds=1)
    with connect(served, REQUEST) as idle:
        assert answer(idle) == b"served"
        assert idle.recv(1) == b""


def test_half_of_the_file_descriptors_are_for_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most in ((256, 128), (100_000, 1000), (resource.RLIM_INFINITY, 1000)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert waitress_server._max_connections() == most
