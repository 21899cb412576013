"""Texts of clients, of any length: nothing keeps them when a call is over, or as long as a stream is open, and no log has them."""

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor

from service import audit
from service.access.rights import GRPC
from service.rpc.call import Unary
from service.server import Server
from tests.conftest import Serve
from tests.integration.access_file import metadata, write_auth_file
from tests.integration.test_repository import eventually

CHARACTERS = 150_000
WHO = ("admin", "digits", "nobody", None)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "audit.jsonl"
    audit.open_log(path)
    yield path
    audit.open_log(None)


@pytest.fixture
def server(repository: Path, serve: Serve, tmp_path: Path) -> Server:
    return serve(repository, auth=write_auth_file(tmp_path / "auth.toml"), channelz=True, shared_memory_prefix=("convoy-test-",))


def filled(message: Any) -> Any:
    """The message with a long text in each of its fields that may have one."""
    for field in message.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated and field.containing_oneof is None:
            setattr(message, field.name, "x" * CHARACTERS)
        elif field.name == "request":
            filled(getattr(message, field.name))
    if message.DESCRIPTOR.name == "ServerReflectionRequest":
        message.file_containing_symbol = "x" * CHARACTERS
    return message


def long_blocks() -> int:
    """How many blocks of memory could be such a text."""
    return sum(trace.size >= CHARACTERS for trace in tracemalloc.take_snapshot().traces)


def call_every_method(server: Server, channel: grpc.Channel, open_calls: ExitStack) -> list[str]:
    """Calls each method as each of WHO, with the stream left open and not read. Returns the codes of the others."""
    codes = []
    for method in server._transport._options.methods:  # type: ignore[attr-defined]
        assert method.path in GRPC
        for who in WHO:
            message = filled(method.request()).SerializeToString()
            if isinstance(method, Unary):
                unary: Any = channel.unary_unary(method.path)
                call = unary.future(message, metadata=metadata(who), timeout=30)
                codes.append(call.code().name)
            else:
                stream: Any = channel.stream_stream(method.path)
                open_calls.callback(stream(iter([message]), metadata=metadata(who), timeout=300).cancel)
    return codes


def test_nothing_of_a_long_text_is_kept_or_logged(server: Server, log: Path) -> None:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel, ExitStack() as open_calls:
        tracemalloc.start()
        open_calls.callback(tracemalloc.stop)
        codes = call_every_method(server, channel, open_calls)
        assert len(set(codes)) > 3
        eventually(lambda: long_blocks() == 0)
    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"load", "unload", "register", "unregister"} <= {line["what"] for line in found}
    assert max(len(text) for line in found for text in line.values() if isinstance(text, str)) <= audit.MAX_OUTCOME_CHARACTERS + 1
