"""Texts of clients, of any length: nothing keeps them when a call is over, or as long as a stream is open, and no log has them."""

import http.client
import itertools
import json
import re
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor

from service.access import audit
from service.access.rights import GRPC, HTTP
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
    return serve(repository, auth=write_auth_file(tmp_path / "auth.toml"), channelz=True, shared_memory_prefix=("convoy-test-",),
                 access_log_sample=1.0)  # fmt: skip


def filled(message: Any) -> Any:
    """The message with a long text in each of its fields that may have one."""
    for field in message.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated and field.containing_oneof is None:
            setattr(message, field.name, "x" * CHARACTERS)
        elif field.name == "request":
            filled(getattr(message, field.name))
    if message.DESCRIPTOR.name == "ModelInferRequest":  # else it would come no further than to the check of its inputs
        message.inputs.add(name=message.id, datatype="UINT8", shape=[1])
        message.raw_input_contents.append(b"x")
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


def ask_every_route(server: Server) -> set[int]:
    """Asks each route of the HTTP port as each of WHO. Returns the statuses."""
    statuses = set()
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    text = "x" * 3000
    document = {"id": text, "key": text, "repository_name": text, "byte_size": 1, "parameters": {text: 1}, "inputs": []}
    for path, who, method in itertools.product(HTTP, WHO, ("GET", "POST")):
        headers = dict(metadata(who)) | {"Origin": f"https://{text}", "Traceparent": text}
        body = None if method == "GET" else json.dumps({} if path.endswith("load") else document)
        connection.request(method, re.sub("<[^>]*>", text, path), body, headers)
        with connection.getresponse() as response:
            response.read()
            statuses.add(response.status)
    connection.close()
    return statuses


def test_nothing_of_a_long_text_is_kept_or_logged(server: Server, log: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel, ExitStack() as open_calls:
        tracemalloc.start()
        open_calls.callback(tracemalloc.stop)
        codes = call_every_method(server, channel, open_calls)
        assert len(set(codes)) > 3
        assert {200, 401, 403, 404, 405} <= ask_every_route(server)
        eventually(lambda: long_blocks() == 0)
    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"load", "unload", "register", "unregister"} <= {line["what"] for line in found}
    assert {"convoy.access"} <= {record.name for record in caplog.records}
    logged = [str(value) for record in caplog.records for value in (record.getMessage(), *vars(record).values())
              if value is not record.args]  # fmt: skip
    assert max(map(len, logged)) < 20_000, "tracebacks among them"
    assert not [text[:200] for text in logged if "x" * 1100 in text]
    assert max(len(text) for line in found for text in line.values() if isinstance(text, str)) <= audit.MAX_OUTCOME_CHARACTERS + 1


def test_reflection_refuses_what_it_would_have_to_repeat(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        ask: Any = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.RpcError, match="at most 4096 are accepted"):
            next(ask(iter([b"\x22\x80\x20" + b"x" * 4096]), metadata=metadata("read"), timeout=20))
        assert next(ask(iter([b"\x22\xf4\x03" + b"x" * 500]), metadata=metadata("read"), timeout=20))
