"""Which worker is given a connection: real sockets and the real acceptor; the workers are ends of socket pairs in this process."""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from service.sockets import listeners
from service.workers import acceptor as accepting
from service.workers.acceptor import Acceptor, WorkerConnections, can_pass_connections
from tests.integration.test_repository import eventually


class FakeWorker:
    """Takes what it is given, and keeps it open."""

    def __init__(self, number: int) -> None:
        given, self.pipe = socket.socketpair()
        self.number = number
        self.pid = os.getpid()
        self.connections = WorkerConnections(given)
        self.taken: list[int] = []
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while (received := socket.recv_fds(self.pipe, 1, 1))[0]:
                self.taken += received[1]

    def drop(self, count: int) -> None:
        """Closes connections, as clients that leave do."""
        for descriptor in self.taken[:count]:
            os.close(descriptor)
        del self.taken[:count]

    def close(self) -> None:
        self.drop(len(self.taken))
        with contextlib.suppress(OSError):
            self.pipe.shutdown(socket.SHUT_RDWR)
        self.pipe.close()
        self.connections.close()


def close_all(workers: list[FakeWorker]) -> None:
    for each in workers:
        each.close()


Start = Callable[[list[FakeWorker]], int]


@pytest.fixture
def connect() -> Iterator[Callable[[int, int], None]]:
    """Opens connections to a port, and closes them at the end."""
    with contextlib.ExitStack() as opened:

        def open_connections(port: int, count: int) -> None:
            for _ in range(count):
                opened.enter_context(socket.create_connection(("127.0.0.1", port)))

        yield open_connections


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts acceptors for lists of workers that may change; returns the port."""
    with contextlib.ExitStack() as started:

        def begin(workers: list[FakeWorker]) -> int:
            bound = listeners.bind(["127.0.0.1"], 0, "gRPC")
            for each in bound:
                started.enter_context(each)
            acceptor = Acceptor(bound, lambda: list(workers), 20.0)
            started.callback(acceptor.stop)
            started.callback(close_all, workers)
            acceptor.start()
            port: int = bound[0].getsockname()[1]
            return port

        yield begin


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_however_many_connections_come_at_once_no_worker_has_two_more_than_another(
    start: Start, connect: Callable[[int, int], None], workers: int
) -> None:
    several = [FakeWorker(number) for number in range(workers)]
    port = start(several)
    shares = [0] * workers
    for count in (2, 4, 8, 16, 64):
        total = sum(shares) + count
        connect(port, count)
        eventually(lambda total=total: sum(len(worker.taken) for worker in several) == total)  # type: ignore[misc]
        shares = [len(worker.taken) for worker in several]
        assert max(shares) - min(shares) <= 1, shares


def test_a_worker_that_has_lost_its_connections_or_is_new_is_given_the_next(
    start: Start, connect: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "COUNT_SECONDS", 0.0)
    monkeypatch.setattr(accepting, "ARRIVAL_SECONDS", 1.0)
    workers = [FakeWorker(1), FakeWorker(2)]
    port = start(workers)
    connect(port, 16)
    eventually(lambda: [len(worker.taken) for worker in workers] == [8, 8])
    workers[0].drop(6)
    eventually(lambda: workers[0].connections.count(os.getpid()) == 2)
    connect(port, 6)
    eventually(lambda: [len(worker.taken) for worker in workers] == [8, 8])
    workers.append(FakeWorker(3))
    connect(port, 8)
    eventually(lambda: [len(worker.taken) for worker in workers] == [8, 8, 8])


def test_connections_wait_for_a_worker_and_pass_one_that_has_exited(start: Start, connect: Callable[[int, int], None]) -> None:
    workers: list[FakeWorker] = []
    port = start(workers)
    connect(port, 3)
    workers.append(FakeWorker(1))
    eventually(lambda: len(workers[0].taken) == 3)
    workers.append(FakeWorker(2))
    workers[1].pipe.shutdown(socket.SHUT_RDWR)
    connect(port, 4)
    eventually(lambda: len(workers[0].taken) == 7)


def test_a_stopped_acceptor_refuses_connections_and_keeps_the_port() -> None:
    worker = FakeWorker(1)
    [bound] = listeners.bind(["127.0.0.1"], 0, "gRPC")
    with bound:
        acceptor = Acceptor([bound], lambda: [worker], 0.0)
        address = bound.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        acceptor.start()
        socket.create_connection(address).close()
        acceptor.stop()
        acceptor.start()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
    worker.close()


def test_a_process_that_says_nothing_of_its_sockets_counts_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "open_sockets", lambda pid: None)
    monkeypatch.setattr(accepting, "ARRIVAL_SECONDS", 0.0)
    worker = FakeWorker(1)
    for _ in range(3):
        with socket.socket() as connection:
            assert worker.connections.give(connection)
    assert worker.connections.count(worker.pid) == 3
    worker.close()


def test_whether_grpcio_takes_connections_is_tried_and_a_crash_means_no(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert can_pass_connections()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert not can_pass_connections()
    assert "the installed grpcio takes no accepted connections (exit code 1)" in caplog.text
