"""Which worker gets an HTTP request, and when another one gets it too."""

from concurrent.futures import Future
from typing import Any, cast

import pytest

from service.errors import NotFound, Unavailable
from service.workers import forwarding
from service.workers.forwarding import Forwarder
from service.workers.heartbeat import Activity, Heartbeat
from service.workers.ipc import IpcClosed, IpcNotSent
from service.workers.process import WorkerProcess

INFER = {"REQUEST_METHOD": "POST", "PATH_INFO": "/v2/models/digits/infer"}
PICTURE = {"REQUEST_METHOD": "POST", "PATH_INFO": "/page/classify/digits"}
LOAD = {"REQUEST_METHOD": "POST", "PATH_INFO": "/v2/repository/models/digits/load"}
READ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/v2/models/digits"}


class Worker:
    """Answers with 200, raises `error`, or says nothing while it is silent, doing `activity`."""

    def __init__(self, error: Exception | None = None, activity: Activity | None = None) -> None:
        self.asked = 0
        self._error = error
        self._silent = activity is not None
        self.heartbeat = Heartbeat(lambda: activity or Activity.BUSY)
        for _ in range(4 if self._silent else 0):
            self.heartbeat.missed()

    def call(self, method: str, request: dict[str, Any], body: bytes) -> Future[Any]:
        assert (method, body) == ("http", b"body")
        self.asked += 1
        reply: Future[Any] = Future()
        if self._error is not None:
            reply.set_exception(self._error)
        elif not self._silent:
            reply.set_result((200, [], b"", []))
        return reply


def statuses(request: dict[str, Any], *workers: Worker, requests: int = 1) -> list[int | str]:
    """The answers to so many requests, one after the other."""
    forwarder = Forwarder(lambda: cast("list[WorkerProcess]", list(workers)))
    found: list[int | str] = []
    for _ in range(requests):
        try:
            found.append(forwarder.answer(request, b"body").status)
        except Unavailable as error:
            found.append(str(error))
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(forwarding, "LIMIT_SECONDS", 0.1)


def test_each_worker_has_its_turn() -> None:
    workers = [Worker(), Worker(), Worker()]
    assert statuses(INFER, *workers, requests=9) == [200] * 9
    assert [worker.asked for worker in workers] == [3, 3, 3]


@pytest.mark.parametrize(
    ("request_", "worker", "answer"),
    [
        (READ, Worker(IpcClosed("exited")), 200),
        (INFER, Worker(IpcClosed("exited")), "the worker that had the request has exited"),
        (INFER, Worker(IpcNotSent("exited before")), 200),
        (LOAD, Worker(IpcNotSent("exited before")), 200),
        (READ, Worker(activity=Activity.BUSY), 200),
        (INFER, Worker(activity=Activity.BUSY), "no answer within 0.1 s"),
        (INFER, Worker(activity=Activity.STOPPED), 200),
        (PICTURE, Worker(activity=Activity.STOPPED), 200),
        (LOAD, Worker(activity=Activity.STOPPED), "no answer within 0.1 s"),
    ],
)
def test_another_worker_is_asked_if_that_is_safe(request_: dict[str, Any], worker: Worker, answer: int | str) -> None:
    other = Worker()
    assert statuses(request_, worker, other) == [answer]
    assert (worker.asked, other.asked) == (1, int(answer == 200))


def test_without_another_worker_there_is_an_answer_all_the_same() -> None:
    assert statuses(READ, Worker(IpcClosed("exited"))) == ["no worker responds"]
    assert statuses(READ, Worker(activity=Activity.STOPPED)) == ["no answer within 0.1 s"]
    with pytest.raises(NotFound):
        statuses(READ, Worker(NotFound("an error of the worker")), Worker())
