"""The seeds of the fuzzer, and what is made of them by cutting, doubling and changing: each is answered or refused."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.server import Server
from tests.conftest import Serve
from tests.fuzz import targets

CHANGED = 30
"""Inputs made of each target's seeds."""


@pytest.fixture
def surfaces(server: Server) -> Iterator[targets.Surfaces]:
    opened = targets.Surfaces(server.grpc_port, server.http_port)
    yield opened
    opened.close()


def inputs(seeds: list[bytes]) -> list[bytes]:
    chance = random.Random(0)
    changed = []
    for _ in range(CHANGED):
        data = bytearray(chance.choice(seeds))
        at = chance.randrange(len(data) + 1)
        data[at : at + chance.randrange(4)] = chance.choice(
            [b"", b"\0", b"\xff" * 4, chance.randbytes(3), bytes(data[at : at + 40])]
        )
        changed.append(bytes(data))
    return [b"", *seeds, *changed]


def test_the_surfaces_answer_or_refuse_every_input(surfaces: targets.Surfaces, server: Server, model_file: Path) -> None:
    seeds = targets.seeds(model_file.read_bytes())
    for name, target in surfaces.targets.items():
        for data in inputs(list(seeds[name])):
            target(data)
    assert not server.not_ready_reason()


@pytest.mark.parametrize("name", targets.READERS)
def test_the_readers_of_files_take_or_refuse_every_input(name: str, model_file: Path) -> None:
    seeds = targets.seeds(model_file.read_bytes())
    for data in inputs(list(seeds[name])):
        targets.READERS[name](data)
    assert seeds[name]


def test_a_failure_is_noticed(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    server = serve(tmp_path / "models")
    opened = targets.Surfaces(server.grpc_port, server.http_port)
    server.stop()
    with pytest.raises((AssertionError, OSError)):
        opened.targets["classify"](b"")
    opened.close()
