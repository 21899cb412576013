"""Two real servers behind a real proxy, and what must hold of any of them: each test of load balancing is this with one proxy."""

import contextlib
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from export.data.datasets import Dataset
from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.conftest import ServerProcess, Spawn
from tests.deploy.traffic import Traffic


def request(digits: Dataset) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=digits.test.encoded(0))])


def free_ports(count: int) -> list[int]:
    """Ports that are free now: for servers that come back on the one they had, and proxies, which must be told theirs."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Pair:
    """Two servers of one repository on ports of their own, each of which can be restarted."""

    def __init__(self, spawn: Spawn, repository: Path) -> None:
        self._spawn = spawn
        self._repository = repository
        self.grpc_ports, self.http_ports = free_ports(2), free_ports(2)
        self.servers = [self._start(index) for index in range(2)]

    def _start(self, index: int) -> ServerProcess:
        # Later flags win over those that `spawn` gives. Twice the usual lame-duck time: a test's machine may be busy.
        return self._spawn(
            self._repository, "--grpc-port", str(self.grpc_ports[index]), "--http-port", str(self.http_ports[index]),
            "--lame-duck-seconds", "2",
        )  # fmt: skip

    def restart(self, index: int) -> int:
        """SIGTERM, and once it has ended a new one in its place; returns the exit code."""
        code = self.servers[index].terminate()
        self.servers[index] = self._start(index)
        return code

    def answered(self) -> list[float]:
        """How many calls of `Classify` each of the two has answered well."""
        return [handled(server.http_port) for server in self.servers]


def handled(http_port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "grpc_server_handled_total"
        and (sample.labels["grpc_method"], sample.labels["grpc_code"]) == ("Classify", "OK")
    )


@contextlib.contextmanager
def running(command: Sequence[str | Path], ready_port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A proxy, from when it listens until the end of the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_until(lambda: listens(ready_port), lambda: f"{process.poll()}: {log.read_text()[-2000:]}")
        yield process
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], bool], what: Callable[[], str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def serves(pair: Pair, index: int) -> bool:
    return handled(pair.http_ports[index]) > 20


def check(target: str, pair: Pair, digits: Dataset, fresh: bool = True, options: Sequence[tuple[str, Any]] = ()) -> None:
    """An even split, a draining server left alone, and a rolling restart of both: not one request fails in any of it."""
    with Traffic(target, request(digits), clients=1, fresh=False, options=options) as probe:
        # One channel, and both answer: requests are balanced and not connections.
        wait_until(lambda: min(pair.answered()) > 0, lambda: f"one server gets nothing: {pair.answered()}; {probe.failures[:3]}")
    before = pair.answered()
    with Traffic(target, request(digits), clients=8, fresh=fresh, options=options) as traffic:
        traffic.wait_for(600)
    shares = [now - then for now, then in zip(pair.answered(), before, strict=True)]
    # A fresh channel asks whichever server it reached first: on a busy machine that is not half and half.
    assert min(shares) > 0.25 * sum(shares), shares
    assert not traffic.failures, traffic.failures[:3]
    # Less of it: it goes on for as long as servers take to stop and start, on the processor that they do it on.
    with Traffic(target, request(digits), clients=8, fresh=fresh, options=options, pause_seconds=0.05) as traffic:
        for index in (0, 1):
            traffic.wait_for(100)
            assert pair.restart(index) == 0
            # The next goes down only once this one has its part of the work again, as in Kubernetes when it is ready.
            wait_until(partial(serves, pair, index), lambda: f"{pair.answered()} {traffic.failures[:3]}")
    assert not traffic.failures, traffic.failures[:3]
