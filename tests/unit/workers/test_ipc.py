import os
import socket
import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from typing import Any

import pytest

from service import errors
from service.workers.ipc import IpcClosed, IpcConnection, RemoteError
from tests.lack_of_threads import no_more_threads

Connect = Callable[..., tuple[IpcConnection, IpcConnection]]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes two connected ends with the given handlers; breaks them at the end."""
    made: list[int] = []

    def make(here: Callable[..., Any], there: Callable[..., Any], **options: Any) -> tuple[IpcConnection, IpcConnection]:
        one, other = Pipe()
        made.append(os.dup(one.fileno()))
        ends = IpcConnection(one, here, **options), IpcConnection(other, there)
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


def no_calls(*_: Any) -> None:
    raise AssertionError("unexpected call")


def test_replies_may_arrive_in_any_order(connect: Connect) -> None:
    later = threading.Event()

    def there(method: str, number: int) -> tuple[str, int]:
        if number == 0:
            later.wait(10)
        return method, -number

    here, _ = connect(no_calls, there)
    calls = [here.call("minus", number) for number in range(50)]
    assert [reply.result(10) for reply in calls[1:]] == [("minus", -number) for number in range(1, 50)]
    assert not calls[0].done()
    later.set()
    assert calls[0].result(10) == ("minus", 0)


def test_what_cannot_be_read_closes_the_connection_on_both_ends() -> None:
    one, other = Pipe()
    closed = threading.Event()
    here = IpcConnection(one, no_calls, closed.set)
    here.start()
    call = here.call("anything")
    other.send_bytes(b"no pickle")
    assert closed.wait(10)
    with pytest.raises(IpcClosed):
        call.result(10)
    other.recv_bytes()
    with pytest.raises(EOFError):
        other.recv_bytes()


def test_a_call_to_a_process_that_hangs_can_time_out(connect: Connect) -> None:
    one, other = Pipe()
    here = IpcConnection(one, no_calls)
    here.start()
    calls = [here.call("large", bytes(2**22)), here.call("small")]
    for reply in calls:
        with pytest.raises(TimeoutError):
            reply.result(0.1)
    other.close()
    for reply in calls:
        with pytest.raises(IpcClosed):
            reply.result(10)


def test_a_call_that_no_thread_can_be_started_for_fails_alone(connect: Connect) -> None:
    here, _ = connect(no_calls, lambda method: method)
    with no_more_threads("ipc-"), pytest.raises(errors.Unavailable, match="can start no thread"):
        here.call("status").result(10)
    assert here.call("status").result(10) == "status"


def test_a_handler_may_call_the_other_side(connect: Connect) -> None:
    """Nested, and many at once: a worker's load request goes to the supervisor, which calls that worker."""
    ends: list[IpcConnection] = []

    def handler_of(end: int) -> Callable[..., int]:
        def reply(_: str, depth: int) -> int:
            deeper: int = ends[end].call("deeper", depth - 1).result(10) if depth else 0
            return deeper + 1

        return reply

    ends += connect(handler_of(0), handler_of(1))
    assert [reply.result(10) for reply in [ends[0].call("deeper", 6) for _ in range(20)]] == [7] * 20


@pytest.mark.parametrize(
    "error",
    [
        errors.UserError("no such folder"),
        errors.NotFound("no model named 'x'"),
        errors.GoldenMismatch("golden sample 0 mismatch"),
        errors.InvalidRequest("bad", "items[3]"),
        errors.QueueFull("8 control requests are being carried out", 2.5),
        ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime"),
    ],
)
def test_an_error_meant_for_users_is_raised_in_the_caller(connect: Connect, error: Exception) -> None:
    def there(_: str) -> None:
        raise error

    raised = connect(no_calls, there)[0].call("fail").exception(10)
    assert type(raised) is type(error)
    assert (str(raised), vars(raised)) == (str(error), vars(error))


class OfTwo(errors.ConvoyError):
    """As no error can be that is to be raised in another process: only its message comes along."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


def test_any_other_error_is_logged_where_it_happened(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    def there(what: str) -> Any:
        if what == "full":
            raise OfTwo("the queue is full", 1.0)
        return threading.Lock() if what == "unsendable" else 1 / 0

    here, _ = connect(no_calls, there)
    for method, why in (("divide", "ZeroDivisionError"), ("unsendable", "TypeError"), ("full", "the queue is full")):
        with pytest.raises(RemoteError, match=why):
            here.call(method).result(10)
    assert "division by zero" in caplog.text


def test_when_the_other_process_exits_pending_and_later_calls_fail(connect: Connect) -> None:
    one, other = Pipe()
    closed = threading.Event()
    here = IpcConnection(one, no_calls, closed.set)
    here.start()
    waiting = here.call("anything")
    other.close()
    assert isinstance(waiting.exception(10), IpcClosed)
    assert closed.wait(10)
    assert isinstance(here.call("more").exception(10), IpcClosed)
