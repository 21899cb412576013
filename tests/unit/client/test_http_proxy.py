"""Which proxy of the environment is used, compared with what gRPC itself does."""

import socket
import threading
from collections.abc import Iterator

import grpc
import pytest

from service.client.http_proxy import HttpProxy, http_proxy

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")


class Listener:
    """Refuses every CONNECT, and remembers that it was asked."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.asked = False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self.asked |= connection.recv(4096).startswith(b"CONNECT ")
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    opened = Listener()
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({}, None),
        ({"http_proxy": "http://PROXY"}, "http_proxy"),
        ({"https_proxy": "http://user:secret@PROXY/", "http_proxy": "http://127.0.0.1:9"}, "https_proxy"),
        ({"grpc_proxy": "HTTP://PROXY", "https_proxy": "http://127.0.0.1:9"}, "grpc_proxy"),
        ({"grpc_proxy": "", "http_proxy": "http://PROXY"}, None),
        ({"http_proxy": "PROXY"}, None),
        ({"http_proxy": "socks5://PROXY"}, None),
        ({"http_proxy": "http://[PROXY"}, None),
        ({"http_proxy": "http://PROXY", "no_proxy": "other, 127.0.0.1"}, None),
        ({"http_proxy": "http://PROXY", "no_proxy": "0.0.1"}, None),
        ({"http_proxy": "http://PROXY", "no_proxy": "10.0.0.0/8,127.0.0.0/8"}, None),
        ({"http_proxy": "http://PROXY", "no_proxy": "10.0.0.0/8,x/y,127.0.0.2,,"}, "http_proxy"),
        ({"http_proxy": "http://PROXY", "no_proxy": "127.0.0.1", "no_grpc_proxy": "other"}, "http_proxy"),
    ],
)
def test_a_proxy_is_found_by_the_rules_of_grpc(
    environment: dict[str, str], variable: str | None, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("PROXY", listener.address))
    assert http_proxy("127.0.0.1") == (None if variable is None else HttpProxy(listener.address, variable))
    with grpc.insecure_channel("127.0.0.1:1") as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/none", bytes, bytes)(b"", timeout=20)
    assert listener.asked == (variable is not None)


def test_a_star_stands_for_every_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_grpc_proxy", "*")
    assert http_proxy("models.example") is None
