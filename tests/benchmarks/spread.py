"""How evenly connections come to the workers: given by the kernel (SO_REUSEPORT), and by the supervisor's acceptor.

Counts connections and no time, so that a busy machine is as good as an idle one. Each try opens all its connections at once, to
workers that have none. The table has the share of the worker that has most, in percent: in the middle, in the worst tenth, and the
worst of all tries.

Usage: python -m tests.benchmarks.spread [--tries 500] [--workers 2,4]
"""

import argparse
import contextlib
import os
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table

from service.sockets import listeners
from service.workers.acceptor import Acceptor, WorkerConnections

CONNECTIONS = (2, 4, 8, 16, 64)

RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: a connection that is closed leaves no TIME_WAIT, of which many tries would make too many."""

Shares = Callable[[int], list[int]]
"""Opens so many connections, returns how many each worker was given, and closes them."""


class Worker:
    """Takes connections as a worker does, and closes them when told."""

    def __init__(self, number: int) -> None:
        given, self._pipe = socket.socketpair()
        self.number = number
        self.pid = os.getpid()
        self.connections = WorkerConnections(given)
        self.taken: list[socket.socket] = []
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while (received := socket.recv_fds(self._pipe, 1, 1))[0]:
            self.taken += (socket.socket(fileno=each) for each in received[1])

    def close_all(self) -> int:
        count = len(self.taken)
        for each in self.taken:
            reset(each)
        self.taken.clear()
        self.connections._open.clear()
        return count


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()


@contextlib.contextmanager
def by_acceptor(workers: int) -> Iterator[Shares]:
    several = [Worker(number) for number in range(workers)]
    [bound] = listeners.bind(["127.0.0.1"], 0, "gRPC")
    acceptor = Acceptor([bound], lambda: several, 0.0)
    acceptor.start()

    def shares(connections: int) -> list[int]:
        with opened(bound.getsockname(), connections):
            while sum(len(worker.taken) for worker in several) < connections:
                time.sleep(0.001)
            return [worker.close_all() for worker in several]

    with bound:
        yield shares
        acceptor.stop()


@contextlib.contextmanager
def by_kernel(workers: int) -> Iterator[Shares]:
    with contextlib.ExitStack() as stack:
        [first] = listeners.bind(["127.0.0.1"], 0, "gRPC", shared=True)
        port = first.getsockname()[1]
        several = [first, *(listeners.bind(["127.0.0.1"], port, "gRPC", shared=True)[0] for _ in range(workers - 1))]
        for each in several:
            stack.enter_context(each).listen(1000)
            each.setblocking(False)

        def accepted(listening: socket.socket) -> int:
            count = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    reset(listening.accept()[0])
                    count += 1
            return count

        def shares(connections: int) -> list[int]:
            with opened(first.getsockname(), connections):
                return [accepted(each) for each in several]

        yield shares


@contextlib.contextmanager
def opened(address: tuple[str, int], connections: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(connections):
            stack.enter_context(socket.create_connection(address))
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=500)
    parser.add_argument("--workers", default="2,4")
    arguments = parser.parse_args()
    table = Table("workers", "connections", "even", "kernel: median", "worst tenth", "worst", "acceptor: median", "worst")
    for workers in map(int, arguments.workers.split(",")):
        with by_kernel(workers) as kernel, by_acceptor(workers) as acceptor:
            for connections in CONNECTIONS:
                left, given = (
                    sorted(100 * max(shares(connections)) / connections for _ in range(arguments.tries))
                    for shares in (kernel, acceptor)
                )
                even = 100 * -(-connections // workers) / connections
                found = (statistics.median(left), left[-arguments.tries // 10], left[-1], statistics.median(given), given[-1])
                table.add_row(str(workers), str(connections), *(f"{share:.0f} %" for share in (even, *found)))
    Console().print(table)


if __name__ == "__main__":
    main()
