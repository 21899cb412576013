"""Each job that a pool has taken runs once, and one that it has refused never does."""

import logging
import threading
from collections.abc import Iterator

import pytest

from service.errors import Unavailable
from service.process.thread_pool import ThreadPool
from tests.lack_of_threads import no_more_threads


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    pool = ThreadPool(2, "pool")
    yield pool
    pool.close()


class Held:
    """A job that lasts until it is released."""

    def __init__(self) -> None:
        self.begun, self.released = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.released.wait(30)


def test_threads_are_started_as_they_are_needed_and_no_more_than_the_most(pool: ThreadPool) -> None:
    assert pool._threads == []
    held = [Held(), Held(), Held()]
    for each in held:
        pool.submit(each)
    for each in held[:2]:
        assert each.begun.wait(30)
    assert len(pool._threads) == 2
    assert not held[2].begun.is_set()
    for each in held:
        each.released.set()
    assert held[2].begun.wait(30)


def test_the_end_waits_for_what_was_taken_and_takes_no_more(pool: ThreadPool) -> None:
    done: list[int] = []
    for number in range(100):
        pool.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    pool.close()
    assert sorted(done) == list(range(100))
    with pytest.raises(Unavailable, match="the server is stopping"):
        pool.submit(lambda: done.append(100))


def test_a_job_that_raises_is_logged_and_harms_no_other(pool: ThreadPool, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("broken")

    done = threading.Event()
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            pool.submit(fail)
        pool.submit(done.set)
        assert done.wait(30)
        pool.close()
    assert [record.message for record in caplog.records] == ["a job of the threads pool failed"] * 5


def test_what_comes_of_a_job_starts_no_other_thread(pool: ThreadPool) -> None:
    done: list[int] = []
    over = threading.Event()

    def again(number: int) -> None:
        done.append(number)
        if number == 100:
            over.set()
        else:
            pool.submit(lambda: number + 1, again)

    pool.submit(lambda: 1, again)
    assert over.wait(30)
    assert done == list(range(1, 101))
    assert len(pool._threads) == 1


def test_the_end_waits_for_all_threads_together_no_longer_than_it_is_told(pool: ThreadPool) -> None:
    held = [Held(), Held()]
    for each in held:
        pool.submit(each)
    for each in held:
        assert each.begun.wait(30)
    pool.close(timeout=0.01)
    assert all(thread.is_alive() for thread in pool._threads)
    for each in held:
        each.released.set()


def test_a_job_for_which_there_is_no_thread_never_runs(pool: ThreadPool) -> None:
    done: list[str] = []
    with no_more_threads(), pytest.raises(Unavailable, match="can start no thread"):
        pool.submit(lambda: done.append("refused"))
    pool.submit(lambda: done.append("taken"))
    pool.close()
    assert done == ["taken"]


def test_a_job_waits_for_the_threads_that_there_are(pool: ThreadPool) -> None:
    done: list[str] = []
    held = Held()
    pool.submit(held)
    assert held.begun.wait(30)
    with no_more_threads() as refused:
        pool.submit(lambda: done.append("later"))
    assert refused == ["pool-2"]
    held.released.set()
    pool.close()
    assert done == ["later"]
