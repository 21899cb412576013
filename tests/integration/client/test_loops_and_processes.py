"""Clients in other event loops and processes than those that they were made in."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from export.data.datasets import Dataset
from service.client import AsyncClient, CallFailed
from service.errors import UserError
from service.server import Server

Use = Callable[[AsyncClient], Awaitable[Any]]


@pytest.fixture
def address(server: Server) -> str:
    return f"127.0.0.1:{server.grpc_port}"


@pytest.fixture
def uses(digits: Dataset) -> list[Use]:
    """Every method that calls the server."""
    image = digits.test.encoded(0)

    async def classify(client: AsyncClient) -> None:
        await client.classify([image], "digits")

    async def classify_stream(client: AsyncClient) -> None:
        assert sorted([number async for number, _ in client.classify_stream([[image]] * 3, "digits")]) == [0, 1, 2]

    async def model(client: AsyncClient) -> None:
        await client.model("digits")

    async def models(client: AsyncClient) -> None:
        await client.models()

    return [classify, classify_stream, model, models]


def test_an_asyncio_client_may_be_made_before_its_loop_and_outlive_it(address: str, uses: list[Use]) -> None:
    client = AsyncClient(address)
    for use in uses:
        for _ in range(2):
            asyncio.run(use(client))  # type: ignore[arg-type]
    asyncio.run(client.close())
    for use in uses:
        with pytest.raises(CallFailed, match="CANCELLED: the client is closed"):
            asyncio.run(use(client))  # type: ignore[arg-type]


def test_two_loops_that_run_at_a_time_need_two_clients(address: str, uses: list[Use], digits: Dataset) -> None:
    async def main() -> None:
        async with AsyncClient(address) as client:
            await client.models()
            for use in (*uses, AsyncClient.close):
                with pytest.raises(UserError, match="used in another event loop: make one client for each loop"):
                    await asyncio.to_thread(asyncio.run, use(client))  # type: ignore[arg-type]
            answers = client.classify_stream([[digits.test.encoded(0)]] * 300, "digits")
            await anext(answers)

            async def go_on() -> None:
                await anext(answers)

            with pytest.raises(UserError, match="used in another event loop: make one client for each loop"):
                await asyncio.to_thread(asyncio.run, go_on())
            await client.models()

    asyncio.run(main())


def test_an_asyncio_client_without_a_loop_says_what_it_needs(address: str, uses: list[Use]) -> None:
    client = AsyncClient(address)
    for use in (*uses, AsyncClient.close):
        with pytest.raises(UserError, match="in a running asyncio event loop; without one, use Client"):
            use(client).__await__().send(None)


FORK = """
import os, sys, threading
from service.client import Client

address, image = sys.argv[1], open(sys.argv[2], "rb").read()
client = Client(address, timeout_seconds=20)
answered, ended = threading.Event(), threading.Event()

def requests():
    while not ended.is_set():
        yield [image]

def stream():
    for _ in client.classify_stream(requests(), "digits"):
        answered.set()

busy = threading.Thread(target=stream)
busy.start()
for _ in range(3):
    answered.clear()
    assert answered.wait(20)
    child = os.fork()
    if child == 0:
        client.models()
        assert len(list(client.classify_stream([[image]] * 3, "digits"))) == 3
        client.close()
        with Client(address, timeout_seconds=20) as fresh:
            fresh.models()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
ended.set()
busy.join()
client.models()
client.close()
"""

FORK_ASYNCIO = """
import asyncio, os, sys
from service.client import AsyncClient, Client
from service.errors import UserError

async def use(client):
    async with client:
        await client.models()

address = sys.argv[1]
client = AsyncClient(address, timeout_seconds=20)
asyncio.run(client.models())
child = os.fork()
if child == 0:
    for each in (client, AsyncClient(address)):
        try:
            asyncio.run(use(each))
        except UserError as error:
            assert "forked while an AsyncClient was open" in str(error)
        else:
            os._exit(1)
    Client(address).models()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
asyncio.run(client.close())
child = os.fork()
if child == 0:
    asyncio.run(use(AsyncClient(address, timeout_seconds=20)))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("script", [FORK, FORK_ASYNCIO])
def test_a_forked_process_has_connections_of_its_own(script: str, address: str, digits: Dataset, tmp_path: Path) -> None:
    image = tmp_path / "digit.png"
    image.write_bytes(digits.test.encoded(0))
    result = subprocess.run(
        [sys.executable, "-c", script, address, str(image)], capture_output=True, text=True, timeout=100, check=False
    )
    assert result.returncode == 0, result.stderr
