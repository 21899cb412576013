"""The HTTP port's use of waitress, beyond what waitress promises."""

import errno
import logging
import socket
import threading
import urllib.request
from typing import Any

import pytest
from waitress.server import TcpWSGIServer
from werkzeug.wrappers import Response

from service.http import waitress_server
from service.http.waitress_server import WaitressServer, untested_reason


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
    server = WaitressServer(lambda *_: [], [listener], threads=1, max_body_bytes=1)
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
    server = WaitressServer(Response("served"), [listener], threads=1, max_body_bytes=1)
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
