"""When a worker counts as hung: by what it does, and by ticks."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.workers.heartbeat import LOADING_LIMIT_SECONDS, TICK_SECONDS, Activity, Heartbeat, ProcessActivity, WorkerHung
from tests.integration.test_repository import eventually

STOPPED, IDLE, BUSY = Activity.STOPPED, Activity.IDLE, Activity.BUSY


def seconds_until_hung(*activities: Activity, heartbeat: Heartbeat | None = None) -> float:
    """Of a worker that does these things, a tick each, and then the last for ever."""
    doing = iter(activities)
    heart = heartbeat or Heartbeat(lambda: next(doing, activities[-1]))
    for tick in range(1, 10_000):
        try:
            heart.missed()
        except WorkerHung:
            return tick * TICK_SECONDS
    return float("inf")


@pytest.mark.parametrize(
    ("activities", "seconds"),
    [
        ([STOPPED], 2.5),
        ([IDLE], 10.0),
        ([BUSY], 60.0),
        ([BUSY] * 100 + [STOPPED], 52.5),
        ([BUSY] * 100 + [IDLE], 60.0),
        ([STOPPED] * 4 + [IDLE], 10.0),
        ([STOPPED] * 4 + [BUSY], 60.0),
    ],
)
def test_each_activity_has_its_limit(activities: list[Activity], seconds: float) -> None:
    assert seconds_until_hung(*activities) == seconds


def test_a_response_begins_anew() -> None:
    heart = Heartbeat(lambda: STOPPED)
    for _ in range(100):
        for _ in range(4):
            heart.missed()
        assert heart.silent
        assert heart.stopped
        heart.responded()
        assert not heart.silent
        assert not heart.stopped
    assert seconds_until_hung(heartbeat=heart) == 2.5


def test_a_worker_that_loads_may_be_busy_or_wait_for_ever() -> None:
    assert seconds_until_hung(heartbeat=Heartbeat(lambda: IDLE, LOADING_LIMIT_SECONDS)) == float("inf")
    assert seconds_until_hung(heartbeat=Heartbeat(lambda: BUSY, LOADING_LIMIT_SECONDS)) == float("inf")
    assert seconds_until_hung(heartbeat=Heartbeat(lambda: STOPPED, LOADING_LIMIT_SECONDS)) == 2.5


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Computes on a thread of its own after a line has come, until the next one; its main thread only waits."""
    script = (
        "import threading, sys\n"
        "busy = threading.Event()\n"
        "def compute():\n"
        "    while True:\n"
        "        busy.wait()\n"
        "threading.Thread(target=compute, daemon=True, name='a ) R (').start()\n"
        "while sys.stdin.readline():\n"
        "    busy.clear() if busy.is_set() else busy.set()\n"
        "    print(flush=True)\n"
    )
    running = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield running
    running.kill()
    running.communicate()


def test_what_a_process_does_is_seen_from_outside(process: subprocess.Popen[bytes]) -> None:
    activity = ProcessActivity(process.pid)

    def tell() -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()

    tell()
    eventually(lambda: activity.look() is BUSY)
    tell()
    eventually(lambda: activity.look() is IDLE)
    os.kill(process.pid, signal.SIGSTOP)
    eventually(lambda: activity.look() is STOPPED)
    os.kill(process.pid, signal.SIGCONT)
    eventually(lambda: activity.look() is IDLE)
    process.kill()
    process.wait()
    assert activity.look() is BUSY, "nothing is known of it: the pipe says that it has exited"


def test_without_proc_a_process_counts_as_busy(tmp_path: Path) -> None:
    assert ProcessActivity(os.getpid(), tmp_path).look() is BUSY
