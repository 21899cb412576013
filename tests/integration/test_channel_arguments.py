"""The effect of the server's channel arguments that no other test shows: C core ignores the name of one that it does not know."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from grpc_channelz.v1 import channelz, channelz_pb2

from service.config import ServerConfig
from service.rpc.grpc_transport import create_transport
from service.rpc.health import HealthServicer
from service.rpc.transport import Transport
from tests.integration.http2 import ACK, DATA, PING, Frame, Http2
from tests.integration.transport_service import LIMIT, RecordingObserver, Service

Start = Callable[..., Transport]

ONE = BytesValue(value=b"1").SerializeToString()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def start(service: Service, tmp_path: Path) -> Iterator[Start]:
    """Starts transports with the arguments that `convoy serve` gives them."""
    started: list[Transport] = []

    def begin(name: str, **settings: Any) -> Transport:
        config = ServerConfig.model_validate({"repository": tmp_path, "grpc_port": 0, "transport": name, **settings})
        methods = [*service.methods(), *HealthServicer(lambda: {"": True}).methods()]
        transport = create_transport(config, methods, RecordingObserver(), service.on_idle, LIMIT)
        transport.start()
        started.append(transport)
        return transport

    yield begin
    for transport in started:
        transport.stop(0)


def quiet_connections(port: int, service: Service) -> dict[str, Http2]:
    """Connections on which the server sends nothing more."""
    opened = {name: Http2.to(port) for name in ("idle", "waiting", "watch", "stream")}
    service.kept.clear()
    opened["waiting"].call("/t.T/Keep", ONE)
    assert service.kept.wait(10)
    opened["watch"].call("/grpc.health.v1.Health/Watch", b"")
    opened["stream"].call("/t.T/EchoStream", ONE, more=True)
    for name in ("watch", "stream"):
        assert opened[name].receive_until(lambda frame: frame.kind == DATA)
    for connection in opened.values():
        assert connection.pings(0)  # with the answer go window updates, which would reset the count; a stream may send one later
    return opened


def test_quiet_clients_may_ping_at_the_default_interval_and_not_more_often(start: Start, service: Service) -> None:
    """C core's own default is five minutes. It cuts a connection at the third ping that comes too early."""
    opened = {
        (name, kind): connection
        for name in ("fast", "public")
        for kind, connection in quiet_connections(start(name).port, service).items()
    }
    early = {which: connection.pings(3) for which, connection in opened.items()}  # the first one is always in time
    time.sleep(ServerConfig.model_fields["min_ping_interval_seconds"].default + 0.1)
    in_time = {which: connection.pings(1) for which, connection in opened.items()}
    too_often = {which: all(connection.pings(4) for _ in range(5)) for which, connection in opened.items()}
    for connection in opened.values():
        connection.close()
    assert early == dict.fromkeys(opened, True)
    assert in_time == dict.fromkeys(opened, True)
    assert too_often == dict.fromkeys(opened, False)


def test_the_interval_of_pings_is_the_flags(start: Start, service: Service, transport_name: str) -> None:
    for seconds, lets_pass in ((0, True), (3600, False)):
        for connection in quiet_connections(start(transport_name, min_ping_interval_seconds=seconds).port, service).values():
            with connection:
                assert connection.pings(100) is lets_pass


def test_an_idle_connection_is_pinged(start: Start, transport_name: str) -> None:
    with Http2.to(start(transport_name, keepalive_seconds=0.1).port) as connection:
        for _ in range(4):
            ping = connection.receive_until(lambda frame: frame.kind == PING and not frame.flags & ACK)
            assert ping is not None
            connection.send(Frame(PING, ACK, 0, ping.payload))


def test_a_connection_at_its_maximum_age_ends_after_the_grace_with_its_calls(start: Start, transport_name: str) -> None:
    port = start(transport_name, max_connection_age_seconds=0.1, max_connection_age_grace_seconds=0.1).port
    with Http2.to(port) as connection:
        connection.call("/t.T/EchoStream", ONE, more=True)
        while (frame := connection.receive()) is not None:
            if frame.kind == PING:  # the server ends the connection so that no call is lost: it waits for this answer
                connection.send(Frame(PING, ACK, 0, frame.payload))


def test_other_processes_may_listen_on_the_port_only_if_there_are_several_workers(start: Start, transport_name: str) -> None:
    for workers, shared in ((1, False), (2, True)):
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with contextlib.nullcontext() if shared else pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", start(transport_name, workers=workers).port))


def test_grpc_keeps_statistics_for_channelz_only_if_it_is_served(start: Start, transport_name: str) -> None:
    def servers_on(port: int) -> int:
        servers = channelz.ChannelzServicer.GetServers(channelz_pb2.GetServersRequest(), None).server  # type: ignore[arg-type]
        return sum(f":{port}" in listening.name for server in servers for listening in server.listen_socket)

    for served in (False, True):
        assert servers_on(start(transport_name, channelz=served).port) == served


@pytest.mark.parametrize("limit", [None, 8192, 100_000])
def test_metadata_up_to_the_limit_is_always_taken_and_above_it_never(start: Start, transport_name: str, limit: int | None) -> None:
    """Left to itself, C core refuses what is between two limits by chance."""
    server = start(transport_name, max_metadata_bytes=limit)
    codes = []
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.enable_retries", 0)]) as channel:
        call: Any = channel.unary_unary("/t.T/Echo")
        for size in ((limit or 16_384) - 600, (limit or 16_384) + 1):  # gRPC sends some metadata of its own
            calls = [call.future(ONE, metadata=[("x-token", "y" * size)], timeout=20) for _ in range(50)]
            codes.append({each.code().name for each in calls})
    assert codes == [{"OK"}, {"RESOURCE_EXHAUSTED"}]
