"""Names that gRPC ignores without a word if it does not know them: here each is one that the installed grpcio contains.

The effects of the server's arguments are shown by tests/integration/test_channel_arguments.py, test_transport.py and
test_limits.py, those of the client's by tests/integration/client/.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # noqa: TID251 - its file is read

from service.client.connection import ChannelSettings
from service.config import ServerConfig
from service.rpc.grpc_transport import create_transport

ROOT = Path(__file__).resolve().parents[3]
NAME = re.compile(r"grpc\.[a-z0-9_.]+")


@pytest.fixture(scope="module")
def grpcio() -> bytes:
    return Path(cygrpc.__file__).read_bytes()


def named_in(source: Path) -> Iterator[str]:
    """The names of channel arguments in a file: the first of a pair."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        first = node.elts[0] if isinstance(node, ast.Tuple) and len(node.elts) == 2 else None
        if isinstance(first, ast.Constant):
            name = first.value.decode(errors="replace") if isinstance(first.value, bytes) else first.value
            if isinstance(name, str) and NAME.fullmatch(name):
                yield name


def all_names() -> dict[str, str]:
    """The names of channel arguments in this repository, each with a file that has it."""
    sources = (path for folder in ("service", "deploy", "tests") for path in sorted((ROOT / folder).rglob("*.py")))
    return {name: str(source.relative_to(ROOT)) for source in sources for name in named_in(source)}


def keys(value: Any) -> Iterator[str]:
    """The keys of a service config, and the names of its load balancing policies among them."""
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from keys(each)
    yield from value if isinstance(value, dict) else ()


def test_grpcio_knows_every_channel_argument(grpcio: bytes) -> None:
    found = all_names()
    assert {name: source for name, source in found.items() if f"{name}\0".encode() not in grpcio} == {}
    flags = {"max_connection_age_seconds": 1, "keepalive_seconds": 1}
    config = ServerConfig.model_validate({"repository": ROOT, "transport": "fast", **flags})
    server: Any = create_transport(config, [], Mock(), Mock(), 1)
    client = ChannelSettings("127.0.0.1:8001", None, None, None)
    used = {name for name, _ in [*server._options.channel_arguments(), *client._options]}
    assert used <= found.keys()
    assert len(used) > 15


def test_grpcio_knows_every_key_of_our_service_configs(grpcio: bytes) -> None:
    ours = dict(ChannelSettings(["127.0.0.1:8001", "127.0.0.1:8002"], None, None, None)._options)["grpc.service_config"]
    balanced = (ROOT / "deploy" / "load-balancing" / "service-config.json").read_text(encoding="utf-8")
    for config in (ours, balanced):
        found = set(keys(json.loads(config)))
        assert found >= {"round_robin", "healthCheckConfig", "serviceName", "methodConfig"}
        assert {key for key in found if f"{key}\0".encode() not in grpcio} == set()


def test_grpcio_knows_the_experiment_that_the_program_turns_off(grpcio: bytes) -> None:
    source = (ROOT / "service" / "cli" / "__init__.py").read_text(encoding="utf-8")
    (experiment,) = re.findall(r'"GRPC_EXPERIMENTS", "-(\w+)"', source)
    assert f"{experiment}\0".encode() in grpcio
