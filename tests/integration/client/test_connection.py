"""The Python client and its servers: several of them, those that come and go, and those that cannot be reached."""

import asyncio
import codecs
import contextlib
import signal
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from export.data.datasets import Dataset
from service.client import AsyncClient, CallFailed, Client
from service.client.connection import MAX_RETRIED_BYTES
from service.errors import UserError
from service.server import Server
from tests.conftest import Serve, Spawn, put
from tests.integration.client.test_stream import best
from tests.integration.test_edges import samples
from tests.integration.test_rolling_restart import free_port, wait_until_not_serving
from tests.integration.test_transport import Proxy


@pytest.mark.parametrize("connections", [1, 3])
def test_a_client_has_as_many_connections_as_asked_for(connections: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        client = Client(f"127.0.0.1:{server.getsockname()[1]}", connections=connections, timeout_seconds=60)
        with ThreadPoolExecutor(6) as pool:
            calls = [pool.submit(client.models) for _ in range(6)]
            accepted = [server.accept()[0] for _ in range(connections)]
            server.settimeout(0.2)
            with pytest.raises(TimeoutError):
                server.accept()
            client.close()
            for call in calls:
                with pytest.raises(CallFailed, match="CANCELLED"):
                    call.result()
        for connection in accepted:
            connection.close()


def test_streams_take_the_connections_in_turn() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(2) as pool:
        server.settimeout(20)
        client = Client(f"127.0.0.1:{server.getsockname()[1]}", connections=2)
        streams = [pool.submit(list, client.classify_stream([[b""]], "digits")) for _ in range(2)]
        accepted = [server.accept()[0] for _ in range(2)]
        client.close()
        for stream in streams:
            with pytest.raises(CallFailed, match="CANCELLED"):
                stream.result()
        for connection in accepted:
            connection.close()


def test_calls_of_a_client_that_is_closed_fail() -> None:
    def closed() -> Any:
        return pytest.raises(CallFailed, match="CANCELLED")

    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"

        async def main() -> None:
            client = AsyncClient(at)
            calls = [asyncio.create_task(client.models()), asyncio.create_task(anext(client.classify_stream([[b""]], "digits")))]
            await asyncio.sleep(0.2)
            await client.close()
            for call in calls:
                with closed():
                    await call
            with closed():
                await client.classify([b""], "digits")
            with closed():
                await anext(client.classify_stream([[b""]], "digits"))
            async with AsyncClient(at) as client:
                call = asyncio.create_task(client.models())
                await asyncio.sleep(0.1)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call

        asyncio.run(main())
        client = Client(at)
        closing = threading.Timer(0.2, client.close)
        closing.start()
        with closed():
            list(client.classify_stream([[b""]], "digits"))
        closing.join()
        with closed():
            client.models()
        with closed():
            list(client.classify_stream([[b""]], "digits"))


def test_several_servers_take_their_turn(repository: Path, serve: Serve, digits: Dataset) -> None:
    servers = [serve(repository), serve(repository)]
    addresses = [f"127.0.0.1:{server.grpc_port}" for server in servers]
    classified = ("grpc_server_handled_total", "OK", "Classify", "convoy.v1.Classifier", "unary")

    def answered() -> list[float]:
        return [samples(server)[classified] for server in servers]

    for given in (addresses, ",".join(addresses)):
        with Client(given) as client:
            assert client.server == "ipv4:" + ",".join(addresses)
            before, deadline = answered(), time.monotonic() + 60
            while any(now == was for now, was in zip(answered(), before, strict=True)):  # one has said first that it serves
                client.classify([digits.test.encoded(0)], "digits")
                assert time.monotonic() < deadline, "one server gets all calls"
            before = answered()
            for _ in range(20):
                client.classify([digits.test.encoded(0)], "digits")
            assert min(now - was for now, was in zip(answered(), before, strict=True)) >= 8
    servers[0].stop()
    with Client(addresses) as client:
        for _ in range(10):
            assert len(client.classify([digits.test.encoded(0)], "digits").results) == 1


def test_a_queue_that_is_full_is_tried_again_when_the_server_says(tmp_path: Path, serve: Serve, slow_file: Path) -> None:
    put(slow_file, tmp_path / "slow", "slow", 1)
    (tmp_path / "slow" / "slow" / "serving.toml").write_text("max_batch_size = 4\nmax_queue_items = 4\nmax_request_items = 4\n")
    server = serve(tmp_path / "slow")
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        codes: list[str] = []

        def ask() -> None:
            try:
                codes.append(best(client.classify([np.zeros((2, 2, 1), np.uint8)] * 4, "slow"))[0])
            except CallFailed as error:
                codes.append(error.code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    handled = samples(server)
    refused = handled.get(("grpc_server_handled_total", "RESOURCE_EXHAUSTED", "Classify", "convoy.v1.Classifier", "unary"), 0)
    assert refused > codes.count("RESOURCE_EXHAUSTED"), "some were refused, and answered when they came again"
    assert codes.count("dark") >= 2


def test_a_request_that_is_too_large_is_refused_clearly_and_sent_once(repository: Path, serve: Serve) -> None:
    server = serve(repository, max_message_bytes=MAX_RETRIED_BYTES)
    proxy = Proxy(server.grpc_port)
    size = MAX_RETRIED_BYTES + 1000
    with Client(f"127.0.0.1:{proxy.port}") as client:
        limit = f"the server takes at most {MAX_RETRIED_BYTES} "
        with pytest.raises(CallFailed, match=rf"RESOURCE_EXHAUSTED: the request has 1049\d+ bytes, and {limit}"):
            client.classify([bytes(size)], "digits")
        ((_, refused),) = client.classify_stream([[bytes(size)]], "digits")
        assert limit in str(refused)
    proxy.close()
    assert size < proxy.asked_bytes < 2.5 * size


def test_no_server_is_a_clear_error_soon() -> None:
    with Client("127.0.0.1:1", timeout_seconds=20) as client:
        for call in (lambda: client.models(), lambda: list(client.classify_stream([[b""]], "digits"))):
            with pytest.raises(CallFailed) as caught:
                call()
            assert caught.value.code == "UNAVAILABLE"


def test_a_call_waits_for_a_server_that_is_just_coming_up(server: Server, digits: Dataset) -> None:
    port = free_port()
    proxies: list[Proxy] = []
    coming = threading.Timer(0.05, lambda: proxies.append(Proxy(server.grpc_port, port)))
    with Client(f"127.0.0.1:{port}") as client:
        coming.start()
        assert len(client.classify([digits.test.encoded(0)], "digits").results) == 1
    proxies[0].close()


def test_a_server_that_leaves_is_sent_nothing_while_another_serves(repository: Path, spawn: Spawn, digits: Dataset) -> None:
    leaving, staying = spawn(repository, "--lame-duck-seconds", "60"), spawn(repository)
    leaving.process.send_signal(signal.SIGTERM)
    wait_until_not_serving(leaving)
    with Client([f"127.0.0.1:{leaving.grpc_port}", f"127.0.0.1:{staying.grpc_port}"]) as client:
        for _ in range(20):
            assert len(client.classify([digits.test.encoded(0)], "digits").results) == 1
    with urllib.request.urlopen(f"http://127.0.0.1:{leaving.http_port}/metrics", timeout=10) as answer:
        found = answer.read().decode()
    labels = 'grpc_code="OK",grpc_method="Classify",grpc_service="convoy.v1.Classifier",grpc_type="unary"'
    assert f"grpc_server_handled_total{{{labels}}} 0.0" in found
    leaving.process.send_signal(signal.SIGTERM)


def test_servers_without_a_model_say_so_and_are_used_once_they_have_one(
    tmp_path: Path, serve: Serve, model_file: Path, digits: Dataset
) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    with Client([f"127.0.0.1:{serve(folder).grpc_port}" for folder in folders]) as client:
        with pytest.raises(CallFailed, match=r"UNAVAILABLE: no server is ready: .* loading, draining, or have no model"):
            client.models()
        put(model_file, folders[0], "digits", 1)
        while True:
            with contextlib.suppress(CallFailed):
                assert len(client.classify([digits.test.encoded(0)], "digits").results) == 1
                break


def test_a_proxy_in_the_environment_is_not_for_this_machine(
    server: Server, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for host in ("127.0.0.1", "LOCALHOST", "dns:///localhost", "dns:127.0.0.1", "ipv4:127.0.0.1"):
        with Client(f"{host}:{server.grpc_port}") as client:
            assert len(client.classify([digits.test.encoded(0)], "digits").results) == 1


class HttpProxy:
    """Answers every CONNECT with `answer`, then forwards the connection to `port` if there is one. Keeps what it was asked."""

    def __init__(self, answer: str, port: int = 0) -> None:
        self._answer = answer.encode()
        self._forward = Proxy(port) if port else None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://user:secret@127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[str] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.asked.append(connection.recv(65536).decode().partition("\r\n")[0])
                connection.sendall(self._answer)
                if self._forward is None:
                    connection.close()
                else:
                    threading.Thread(target=self._forward._carry, args=(connection,), daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (None, "Failed to connect to remote host: Connection refused"),
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "HTTP proxy returned response code 407"),
        ("", "(Socket closed|.*reset)"),
    ],
)
def test_a_proxy_that_gives_no_connection_is_named(answer: str | None, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = HttpProxy(answer or "")
    if answer is None:
        proxy.close()
    address = proxy.url.rpartition("@")[2]
    monkeypatch.setenv("grpc_proxy", proxy.url)
    message = (
        rf"^UNAVAILABLE: no connection to models.example:8001 through the HTTP proxy {address} of \$grpc_proxy: {cause}.* "
        r"\(no_grpc_proxy=models.example in the environment goes round the proxy\)$"
    )

    async def stream() -> None:
        async with AsyncClient("models.example:8001") as client:
            await anext(client.classify_stream([[b""]], "digits"))

    with Client("models.example:8001") as client, pytest.raises(CallFailed, match=message):
        client.models()
    with pytest.raises(CallFailed, match=message):
        asyncio.run(stream())
    proxy.close()


def test_a_server_behind_a_proxy_is_asked_by_name_and_a_list_of_servers_directly(
    repository: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(repository)
    proxy = HttpProxy("HTTP/1.1 200 OK\r\n\r\n", server.grpc_port)
    monkeypatch.setenv("grpc_proxy", proxy.url)
    with Client("models.example:8001") as client:
        assert [model.model for model in client.models()] == ["digits"]
    assert proxy.asked == ["CONNECT models.example:8001 HTTP/1.1"]
    with Client([f"127.0.0.1:{server.grpc_port}", "192.0.2.1:1"]) as client:
        assert [model.model for model in client.models()] == ["digits"]
    assert len(proxy.asked) == 1, "gRPC would ask for the list as for one host"
    proxy.close()


def test_pem_files_may_be_saved_by_a_windows_editor(tmp_path: Path, repository: Path, serve: Serve) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = {"ca": authority.cert_pem, "cert": issued.cert_chain_pems[0], "key": issued.private_key_pem}
    paths = {name: tmp_path / f"{name}.pem" for name in files}
    for name, blob in files.items():
        paths[name].write_bytes(codecs.BOM_UTF8 + blob.bytes().replace(b"\n", b"\r\n"))
    server = serve(repository, tls_cert=paths["cert"], tls_key=paths["key"], tls_client_ca=paths["ca"])
    tls: dict[str, Any] = {f"tls_{name}": path for name, path in paths.items()}
    with Client(f"127.0.0.1:{server.grpc_port}", timeout_seconds=10, **tls) as client:
        assert [model.model for model in client.models()] == ["digits"]


def test_the_time_that_a_server_may_take_ends_a_call_that_it_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, Client(f"127.0.0.1:{silent.getsockname()[1]}") as client:
        with pytest.raises(CallFailed) as caught:
            client.classify([b""], "digits", timeout_seconds=0.2)
        assert caught.value.code == "DEADLINE_EXCEEDED"


def test_a_timeout_is_a_positive_number_or_none(server: Server) -> None:
    for none in (None, float("inf"), 1e300):
        with Client(f"127.0.0.1:{server.grpc_port}", timeout_seconds=none) as client:
            assert len(client.models()) == 1
    wrong: Any
    for wrong in (0, -1, float("nan"), "5"):
        with pytest.raises(UserError, match=r"invalid value for timeout_seconds: .*give a positive number"):
            Client(timeout_seconds=wrong)
