"""What the clients' tests share. They run in the clients' own environment, against a server whose address and expected answers
`tests/conformance/test_clients.py` gives them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@dataclass
class Server:
    """The server under test."""

    grpc: str
    http: str
    expected: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.expected[name]


@pytest.fixture(scope="session")
def server() -> Server:
    given = json.loads(os.environ["CONVOY_UNDER_TEST"])
    arrays = np.load(Path(given["expected"]))
    return Server(f"127.0.0.1:{given['grpc_port']}", f"127.0.0.1:{given['http_port']}", {name: arrays[name] for name in arrays})


@pytest.fixture(scope="session")
def pngs(server: Server) -> list[bytes]:
    """The encoded images of `images`."""
    ends = np.cumsum(server["png_sizes"])
    data = server["pngs"].tobytes()
    return [data[end - size : end] for end, size in zip(ends, server["png_sizes"], strict=True)]
