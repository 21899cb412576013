"""One connection of the HTTP port: how requests arrive, are refused, and answered."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from werkzeug.wrappers import Request, Response

from service.http.event_loop import EventLoopServer
from service.http.http1 import EVENTS_AT_ONCE, LINGER_BYTES, SMALL_BODY_BYTES
from service.http.request_head import MAX_HEADER_LINES
from service.http.wsgi import Reply

MAX_BODY_BYTES = 2**20
HOST = b"Host: a\r\n"
Start = Callable[..., int]


@Request.application
def echo(request: Request) -> Response:
    """The request's path and the length of its body, in a header; the body."""
    body = request.get_data()
    return Response(body, headers={"X-Path": request.path, "X-Length": str(len(body))})


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def serve(application: Any = echo, **settings: Any) -> int:
            listener = socket.create_server(("127.0.0.1", 0))
            number: int = listener.getsockname()[1]
            server = EventLoopServer(application, [listener], 1, MAX_BODY_BYTES, settings.pop("idle_seconds", 75), **settings)
            serving = threading.Thread(target=server.run)
            serving.start()
            stack.callback(serving.join, 10)
            stack.callback(server.close)
            return number

        yield serve


def connect(port: int, sent: bytes = b"") -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", port), timeout=20)
    opened.sendall(sent)
    return opened


def received(connection: socket.socket, until: bytes = b"") -> bytes:
    """What the server sends, until it closes the connection or this comes."""
    data = b""
    while (not until or until not in data) and (part := connection.recv(65536)):
        data += part
    return data


def exchange(port: int, sent: bytes) -> bytes:
    """All that the server answers before it closes the connection."""
    with connect(port, sent) as connection:
        return received(connection)


def error(response: bytes) -> tuple[int, str]:
    head, _, body = response.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def test_pipelined_requests_are_answered_in_turn(start: Start) -> None:
    last = b"GET /last HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    post = b"POST /%d HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"
    chunked = b"POST /c HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1;x=y\r\nf\r\n0\r\nTrailer: t\r\n\r\n"
    answered = exchange(start(), b"\r\n".join([post % 1, post % 2]) + chunked + last)
    assert [line for line in answered.split(b"\r\n") if line.startswith(b"X-Path")] == [
        b"X-Path: /1", b"X-Path: /2", b"X-Path: /c", b"X-Path: /last"
    ]  # fmt: skip
    assert answered.count(b"abc") == 2
    assert b"def" in answered


def test_a_request_may_come_byte_by_byte(start: Start) -> None:
    with connect(start()) as connection:
        for byte in b"POST /slow HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nConnection: close\r\n\r\nhi":
            connection.sendall(bytes([byte]))
        assert received(connection).endswith(b"\r\n\r\nhi")


def test_a_client_may_end_its_side_and_wait_for_the_answer(start: Start) -> None:
    with connect(start(), b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\nhi") as connection:
        connection.shutdown(socket.SHUT_WR)
        assert received(connection).endswith(b"\r\n\r\nhi")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_head_has_the_header_of_get_alone(start: Start, version: bytes) -> None:
    sent = b"HEAD / HTTP/" + version + b"\r\n" + HOST + b"Connection: close\r\n\r\n"
    head, _, body = exchange(start(Response("served")), sent).partition(b"\r\n\r\n")
    assert b"Content-Length: 6" in head
    assert body == b""


def test_the_client_is_told_to_go_on_only_once_the_request_is_accepted(start: Start) -> None:
    ask = b"POST /%s HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"

    def admit(environ: Any) -> int | Reply:
        return 2**20 if environ["PATH_INFO"] == "/known" else Reply("404 NOT FOUND", [], b'{"error": "unknown"}')

    port = start(admit=admit)
    with connect(port, ask % (b"known", 5)) as connection:
        assert received(connection, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"hello")
        assert b"200 OK" in received(connection, b"hello")
    assert error(exchange(port, ask % (b"unknown", 5))) == (404, "unknown")
    assert error(exchange(port, ask % (b"known", MAX_BODY_BYTES + 1)))[0] == 413


@pytest.mark.parametrize("framing", [b"Content-Length: 90000000", b"Transfer-Encoding: chunked"])
def test_what_takes_no_body_is_refused_before_it_is_read(start: Start, framing: bytes) -> None:
    port = start(admit=lambda _: Reply("404 NOT FOUND", [], b'{"error": "unknown"}'))
    with connect(port, b"POST /unknown HTTP/1.1\r\n" + HOST + framing + b"\r\n\r\n") as connection:
        answered = received(connection)
        assert error(answered) == (404, "unknown")
        assert b"Connection: close" in answered
        with pytest.raises(ConnectionError):
            connection.sendall(bytes(4 * LINGER_BYTES))


def test_a_client_that_sends_all_before_it_reads_sees_why_it_was_refused(start: Start) -> None:
    port = start()
    length = 8 * MAX_BODY_BYTES
    sent = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % length + bytes(length)
    assert error(exchange(port, sent)) == (413, f"the body is too large: at most {MAX_BODY_BYTES} bytes are accepted")


def test_a_body_in_chunks_has_the_same_limit(start: Start) -> None:
    chunk = b"%x\r\n" % SMALL_BODY_BYTES + bytes(SMALL_BODY_BYTES) + b"\r\n"
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    most = MAX_BODY_BYTES // SMALL_BODY_BYTES
    port = start()
    assert b"X-Length: %d\r\n" % MAX_BODY_BYTES in exchange(port, head + chunk * most + b"0\r\n\r\n")
    assert error(exchange(port, head + chunk * most + b"1\r\na\r\n"))[0] == 413


def test_many_small_chunks_leave_others_their_turn(start: Start) -> None:
    port = start()
    count = 20 * EVENTS_AT_ONCE
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(port, head + b"1\r\na\r\n" * count) as chunks:
        assert b"200 OK" in exchange(port, b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        chunks.sendall(b"0\r\n\r\n")
        assert received(chunks).endswith(b"a" * count)


def test_a_header_has_a_limited_number_of_lines(start: Start) -> None:
    port = start()
    for lines, status in ((MAX_HEADER_LINES - 2, b"200 OK"), (MAX_HEADER_LINES, b"431 "), (40_000, b"431 ")):
        sent = b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n" + b"a: b\r\n" * lines + b"\r\n"
        assert status in exchange(port, sent).partition(b"\r\n")[0], lines


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00", 400),  # TLS
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\nb: c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nb: \x00\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnot hexadecimal\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", 400),
    ],
)
def test_what_is_not_http_is_refused_and_its_connection_closed(start: Start, sent: bytes, status: int) -> None:
    port = start()
    answered = exchange(port, sent)
    assert error(answered)[0] == status
    assert b"X-Content-Type-Options: nosniff" in answered
    assert b"200 OK" in exchange(port, b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")


def test_a_refusal_has_the_headers_for_the_origin_of_its_request(start: Start) -> None:
    port = start(refusal_headers=lambda origin: [("Access-Control-Allow-Origin", str(origin))])
    origin = b"Origin: https://cats.example\r\n"
    for sent in (
        b"GET a HTTP/1.1\r\n" + HOST + origin + b"\r\n",
        b"GET / HTTP/1.1\r\n" + origin + HOST + b"a: b\r\n" * MAX_HEADER_LINES + b"\r\n",
        b"GET / HTTP/1.1\r\n" + origin + b"a" * 300_000,
        b"POST / HTTP/1.1\r\n" + HOST + origin + b"Content-Length: 9999999\r\n\r\n",
    ):
        assert b"Access-Control-Allow-Origin: https://cats.example\r\n" in exchange(port, sent)


@pytest.mark.parametrize(
    "begun", [b"GET", b"GET / HTTP/1.1\r\nHost: a\r\nb: ", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhello"]
)
def test_a_request_that_does_not_arrive_is_refused_after_a_time(start: Start, begun: bytes) -> None:
    port = start(request_seconds=0.3)
    with connect(port, begun) as connection:
        assert error(received(connection)) == (408, "the request did not arrive within 0.3 s")


def test_an_application_that_raises_is_answered_for(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    def broken(environ: Any, start_response: Any) -> Any:
        raise ValueError("secret")

    answered = exchange(start(broken), b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
    assert error(answered) == (500, "internal error; see the server's log")
    assert "secret" in caplog.text


def test_a_header_that_cannot_be_sent_closes_the_connection(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    def splitting(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("X-A", "b\r\nX-C: d")])
        return [b""]

    with connect(start(splitting), b"GET / HTTP/1.1\r\n" + HOST + b"\r\n") as connection, contextlib.suppress(ConnectionError):
        assert received(connection) == b""
    assert "a response cannot be sent" in caplog.text


def test_what_an_application_is_told_of_a_request(start: Start) -> None:
    seen: list[dict[str, Any]] = []

    def application(environ: Any, start_response: Any) -> Any:
        seen.append(environ)
        return Response("")(environ, start_response)

    port = start(application)
    exchange(
        port,
        b"GET //a%20b%2f\xc3\xa9?x=%41 HTTP/1.1\r\n".replace(b"\xc3\xa9", b"%C3%A9") + HOST + b"X-A: 1\r\nX-A: 2\r\nX_A: 3\r\n"
        b"Cookie: a=1\r\nCookie: b=2\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n",
    )
    exchange(port, b"GET http://b.example/c?d HTTP/1.0\r\n\r\n")
    first, second = seen
    assert first["PATH_INFO"].encode("latin-1").decode() == "/a b/é"
    assert (first["QUERY_STRING"], first["CONTENT_TYPE"], first["HTTP_HOST"]) == ("x=%41", "text/plain", "a")
    assert (first["HTTP_X_A"], first["HTTP_COOKIE"]) == ("1, 2", "a=1; b=2")
    assert (first["REMOTE_ADDR"], first["SERVER_PORT"]) == ("127.0.0.1", str(port))
    assert (second["PATH_INFO"], second["QUERY_STRING"], second["SERVER_PROTOCOL"]) == ("/c", "d", "HTTP/1.0")


def test_closing_waits_for_the_answer_that_is_being_made() -> None:
    asked, finish = threading.Event(), threading.Event()

    def slow(environ: Any, start_response: Any) -> Any:
        asked.set()
        assert finish.wait(20)
        return Response("made")(environ, start_response)

    listener = socket.create_server(("127.0.0.1", 0))
    server = EventLoopServer(slow, [listener], 1, MAX_BODY_BYTES, 75)
    serving = threading.Thread(target=server.run)
    serving.start()
    with connect(listener.getsockname()[1], b"GET / HTTP/1.1\r\n" + HOST + b"\r\n") as running:
        assert asked.wait(20)
        server.close()
        deadline = time.monotonic() + 20
        while listener.fileno() >= 0:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        finish.set()
        assert received(running).endswith(b"made")
    serving.join(20)
    assert not serving.is_alive()
