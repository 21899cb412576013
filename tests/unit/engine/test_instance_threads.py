"""Threads that run batches: started by use, ended when idle, never too few."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from service.engine import instance_threads
from service.engine.instance_threads import InstanceThreads
from tests.integration.test_repository import eventually


class Working:
    """Threads whose work is an event to wait for; those that they are done with are in `done`, with the thread's name."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.done: SimpleQueue[str] = SimpleQueue()
        self.threads: InstanceThreads[threading.Event] = InstanceThreads("instance", self._serve)

    def _serve(self) -> None:
        while (work := self.threads.next()) is not None:
            self.begun.release()
            work.wait()
            self.threads.rest()
            self.done.put(threading.current_thread().name)

    def names(self) -> list[str]:
        return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("instance-"))


@pytest.fixture
def working() -> Iterator[Working]:
    made = Working()
    yield made
    made.threads.close()
    assert made.names() == []


def over() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def test_there_are_as_many_as_work_at_a_time(working: Working) -> None:
    assert working.names() == []
    for _ in range(50):
        assert working.threads.hand_over(over())
        assert working.begun.acquire(timeout=10)
        assert working.done.get(timeout=10) == "instance-1"
    held = [threading.Event() for _ in range(3)]
    for event in held:
        assert working.threads.hand_over(event)
        assert working.begun.acquire(timeout=10)
    assert working.names() == ["instance-1", "instance-2", "instance-3"]
    for event in held:
        event.set()
    assert {working.done.get(timeout=10) for _ in held} == {"instance-1", "instance-2", "instance-3"}
    for _ in range(50):
        assert working.threads.hand_over(over())
        working.done.get(timeout=10)
    assert len(working.names()) == 3


def test_idle_ones_end_and_no_work_is_lost_then(working: Working, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_threads, "IDLE_SECONDS", 0.0)  # they end at every chance
    for _ in range(300):
        for _ in range(3):
            assert working.threads.hand_over(over())
        for _ in range(3):
            working.done.get(timeout=10)
    eventually(lambda: working.names() == [])
    assert working.threads.hand_over(over())
    assert working.done.get(timeout=10) == "instance-1"


def test_without_a_thread_the_caller_is_told(working: Working, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        assert not working.threads.hand_over(over())
    assert working.threads.hand_over(over())
    assert working.done.get(timeout=10) == "instance-1"
