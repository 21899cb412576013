"""A server under attack, and what its processes hold: memory, threads, files."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Target:
    """A server that runs: where it listens, and the folder of its models."""

    grpc_port: int
    http_port: int
    pid: int
    repository: Path
    log: Path


@dataclass(frozen=True)
class Held:
    """What the processes of a server hold together."""

    rss_mb: float
    threads: int
    files: int


@contextlib.contextmanager
def serving(repository: Path, folder: Path, *options: str) -> Iterator[Target]:
    """Starts `convoy serve` in a process of its own, waits until it is ready, and ends it."""
    ready, log = folder / "ready.json", folder / "serve.log"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "service.cli", "serve", str(repository), "--grpc-port", "0", "--http-port", "0",
               "--provider", "cpu", "--log-level", "warning", "--ready-file", str(ready), *options]  # fmt: skip
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 120
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start: {log.read_text()}")
            time.sleep(0.05)
        ports = json.loads(ready.read_text())
        yield Target(ports["grpc_port"], ports["http_port"], process.pid, repository, log)
        if process.poll() is not None:
            raise SystemExit(f"the server has exited with {process.returncode}: {log.read_text()[-2000:]}")
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def processes(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def worker_processes(pid: int) -> set[int]:
    """The workers of a server of several; the processes that load and decode for it come and go."""
    found = set()
    for each in processes(pid):
        with contextlib.suppress(OSError):
            if b"service.workers.worker" in Path(f"/proc/{each}/cmdline").read_bytes():
                found.add(each)
    return found


def held(pid: int) -> Held:
    """What a process and all that it has started hold now."""
    rss = threads = files = 0
    for each in processes(pid):
        with contextlib.suppress(OSError, IndexError):
            status = Path(f"/proc/{each}/status").read_text()
            rss += int(status.split("VmRSS:")[1].split()[0])
            threads += int(status.split("Threads:")[1].split()[0])
            files += len(list(Path(f"/proc/{each}/fd").iterdir()))
    return Held(rss / 1024, threads, files)


def discard(connection: socket.socket) -> None:
    """Reads what a server has sent. Raises OSError if it has closed the connection."""
    seconds = connection.gettimeout()
    connection.setblocking(False)
    try:
        with contextlib.suppress(BlockingIOError):
            while connection.recv(65536):
                pass
            raise ConnectionResetError
    finally:
        connection.settimeout(seconds)


class PeakMemory:
    """The highest resident memory of a server, looked at many times a second, within a `with` block."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.rss_mb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.rss_mb = max(self.rss_mb, held(self._pid).rss_mb)
