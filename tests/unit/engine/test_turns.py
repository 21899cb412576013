"""Tasks on different models run side by side, those on one one after the other, and none waits for another model for long."""

import threading
from concurrent.futures import CancelledError, wait

import pytest

from service.engine import turns
from service.engine.turns import Turns

LONG = 30.0


def test_the_tasks_of_a_model_run_one_after_the_other_in_their_order() -> None:
    turns, running, order = Turns(4), threading.Lock(), []

    def run(number: int) -> None:
        assert running.acquire(blocking=False), "one at a time"
        order.append(number)
        running.release()

    wait([turns.submit("a", lambda number=number: run(number), at_once=number % 2 == 0) for number in range(50)], LONG)  # type: ignore[misc]
    assert order == list(range(50))
    assert turns.close(LONG)


def test_models_run_side_by_side_but_not_more_than_so_many() -> None:
    turns, release, together = Turns(2), threading.Event(), threading.Barrier(2)

    def run() -> None:
        together.wait(LONG)
        assert release.wait(LONG)

    first = [turns.submit(name, run) for name in "ab"]
    third = turns.submit("c", lambda: "third")
    asked = turns.submit("d", lambda: "asked for", at_once=True)
    assert asked.result(LONG) == "asked for"
    assert not third.done(), "it has not been asked for, and waits"
    release.set()
    wait([*first, third], LONG)
    assert third.result() == "third"
    assert turns.close(LONG)


def test_a_model_that_takes_long_no_longer_keeps_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, begun, release = Turns(1), threading.Event(), threading.Event()

    def run() -> bool:
        begun.set()
        return release.wait(LONG)

    endless = slow.submit("endless", run)
    assert begun.wait(LONG)
    other = slow.submit("other", lambda: "done")
    slow.tend()
    assert not other.done()
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.0)
    slow.tend()
    assert other.result(LONG) == "done"
    assert not slow.close(0)
    release.set()
    assert endless.result(LONG)
    assert slow.close(LONG)


def test_what_has_not_begun_is_dropped_when_it_is_closed_and_nothing_begins_afterwards() -> None:
    turns, begun, release = Turns(1), threading.Event(), threading.Event()

    def run() -> bool:
        begun.set()
        return release.wait(LONG)

    running = turns.submit("a", run)
    assert begun.wait(LONG)
    waiting = turns.submit("a", lambda: None)
    assert not turns.close(0)
    for dropped in (waiting, turns.submit("b", lambda: None)):
        with pytest.raises(CancelledError):
            dropped.result(LONG)
    release.set()
    assert turns.close(LONG)
    assert running.result(LONG)


def test_a_task_that_fails_is_an_error_for_who_asked_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("on purpose")

    turns = Turns(1)
    failed, after = turns.submit("a", fail), turns.submit("a", lambda: "after")
    with pytest.raises(RuntimeError, match="on purpose"):
        failed.result(LONG)
    assert after.result(LONG) == "after"
    assert "model a: a task on it failed" in caplog.text
    assert turns.close(LONG)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_model_for_which_no_thread_could_be_started_has_its_turn_later(at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    turns = Turns(2)
    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", fail)
        waiting = [turns.submit(name, lambda name=name: name, at_once=at_once) for name in "aba"]  # type: ignore[misc]
        turns.tend()
    assert not any(future.done() for future in waiting)
    assert turns.running_seconds("a") == 0
    turns.tend()
    assert [future.result(LONG) for future in waiting] == ["a", "b", "a"]
    assert turns.close(LONG)
