import os
import socket
import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from typing import Any

import pytest

from service import errors
from service.workers.ipc import AnswerFailed, Channel, ChannelClosed

Connect = Callable[..., tuple[Channel, Channel]]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes two ends of a channel that answer with the functions given; breaks them at the end."""
    made: list[int] = []

    def make(here: Callable[..., Any], there: Callable[..., Any], **options: Any) -> tuple[Channel, Channel]:
        ours, theirs = Pipe()
        made.append(os.dup(ours.fileno()))
        ends = Channel(ours, here, **options), Channel(theirs, there)
        for end in ends:
            end.start()
        return ends

    yield make
    for number in made:
        break_off(number)


def break_off(number: int) -> None:
    """Ends the connection of a descriptor, as the end of a process does."""
    with socket.socket(fileno=number) as end:
        end.shutdown(socket.SHUT_RDWR)


def nothing(*_: Any) -> None:
    raise AssertionError("nobody was to ask")


def test_answers_find_their_questions_though_they_come_in_any_order(connect: Connect) -> None:
    later = threading.Event()

    def there(question: str, number: int) -> tuple[str, int]:
        if number == 0:
            later.wait(10)
        return question, -number

    here, _ = connect(nothing, there)
    asked = [here.ask("minus", number) for number in range(50)]
    assert [answer.result(10) for answer in asked[1:]] == [("minus", -number) for number in range(1, 50)]
    assert not asked[0].done()
    later.set()
    assert asked[0].result(10) == ("minus", 0)


def test_whoever_asks_a_process_that_hangs_can_give_up(connect: Connect) -> None:
    ours, theirs = Pipe()
    here = Channel(ours, nothing)
    here.start()
    asked = [here.ask("large", bytes(2**22)), here.ask("small")]
    for answer in asked:
        with pytest.raises(TimeoutError):
            answer.result(0.1)
    theirs.close()
    for answer in asked:
        with pytest.raises(ChannelClosed):
            answer.result(10)


def test_answering_may_mean_to_ask_in_turn(connect: Connect) -> None:
    """As deep as a load that a worker asks of its supervisor, which asks that worker, by many at once."""
    ends: list[Channel] = []

    def answer_by(end: int) -> Callable[..., int]:
        def answer(_: str, depth: int) -> int:
            deeper: int = ends[end].ask("deeper", depth - 1).result(10) if depth else 0
            return deeper + 1

        return answer

    ends += connect(answer_by(0), answer_by(1))
    assert [answer.result(10) for answer in [ends[0].ask("deeper", 6) for _ in range(20)]] == [7] * 20


@pytest.mark.parametrize(
    "error",
    [
        errors.UserError("no such folder"),
        errors.NotFound("no model named 'x'"),
        errors.GoldenMismatch("off by 1"),
        errors.InvalidRequest("bad", "items[3]"),
        ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime"),
    ],
)
def test_an_error_that_says_what_is_wrong_is_raised_at_the_one_who_asked(connect: Connect, error: Exception) -> None:
    def there(_: str) -> None:
        raise error

    raised = connect(nothing, there)[0].ask("fail").exception(10)
    assert type(raised) is type(error)
    assert (str(raised), vars(raised)) == (str(error), vars(error))


def test_any_other_error_is_in_the_log_over_there(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    def there(what: str) -> Any:
        if what == "full":
            raise errors.QueueFull("the queue is full", 1.0)
        return threading.Lock() if what == "unsendable" else 1 / 0

    here, _ = connect(nothing, there)
    for question, why in (("divide", "ZeroDivisionError"), ("unsendable", "TypeError"), ("full", "the queue is full")):
        with pytest.raises(AnswerFailed, match=why):
            here.ask(question).result(10)
    assert "division by zero" in caplog.text


def test_the_end_of_the_other_process_fails_what_waits_and_what_comes(connect: Connect) -> None:
    ours, theirs = Pipe()
    closed = threading.Event()
    here = Channel(ours, nothing, closed.set)
    here.start()
    waiting = here.ask("anything")
    theirs.close()
    assert isinstance(waiting.exception(10), ChannelClosed)
    assert closed.wait(10)
    assert isinstance(here.ask("more").exception(10), ChannelClosed)
