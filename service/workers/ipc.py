"""Two processes that ask each other things, over one connection.

Either end may `ask` at any time, many questions at once; answers come in any order. A question is answered on a thread of its own:
answering may mean to ask in turn, even the one who asked, and a pool of threads could be full of such questions that wait for each
other. The end of the other process is seen as the end of the connection, at once, however it ended. A thread of its own sends: a
process that hangs does not read, and whoever asks it must be able to give up.
"""

import itertools
import logging
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from service.errors import ConvoyError

log = logging.getLogger(__name__)


class ChannelClosed(ConvoyError):
    """The other process has ended, or its end of the connection is closed: there will be no answer."""


class AnswerFailed(ConvoyError):
    """The other process failed to answer. The cause is in its log."""


Answers = Callable[..., Any]
"""Answers a question from its name and arguments. What it returns or raises goes to the one who asked: it must be picklable."""


class Channel:
    """One end of the connection. Construct and `start`; it ends with either of the processes."""

    def __init__(self, connection: Connection, answers: Answers, on_closed: Callable[[], None] = lambda: None) -> None:
        """`on_closed` is called once, when the other end is gone."""
        self._connection = connection
        self._answers = answers
        self._on_closed = on_closed
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()  # None: no more
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[Any]] | None = {}  # None once the connection is closed
        self._reader = threading.Thread(target=self._read, name="channel", daemon=True)
        self._writer = threading.Thread(target=self._write, name="channel-out", daemon=True)

    def start(self) -> None:
        """Begins to take questions and answers."""
        self._reader.start()
        self._writer.start()

    def ask(self, question: str, *arguments: Any) -> Future[Any]:
        """Asks the other process, and waits for nothing.

        Returns:
            What will hold the answer; or the error that was raised over there; or ChannelClosed; or AnswerFailed.
        """
        future: Future[Any] = Future()
        number = next(self._numbers)
        message = pickle.dumps((number, question, arguments))
        with self._lock:
            if self._waiting is None:
                future.set_exception(ChannelClosed("the process that was asked has ended"))
                return future
            self._waiting[number] = future
        self._outgoing.put(message)
        return future

    def _write(self) -> None:
        try:
            while (message := self._outgoing.get()) is not None:
                self._connection.send_bytes(message)
        except OSError:
            self._closed()

    def _read(self) -> None:
        while True:
            try:
                number, question, content = pickle.loads(self._connection.recv_bytes())  # noqa: S301 - from a process of ours
            except (EOFError, OSError):
                break
            if question:
                threading.Thread(
                    target=self._answer, args=(number, question, content), name=f"answer-{question}", daemon=True
                ).start()
                continue
            with self._lock:
                future = self._waiting.pop(number, None) if self._waiting is not None else None
            if future is None:
                continue
            answer, error = content
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(answer)
        self._closed()
        self._outgoing.put(None)
        self._writer.join()
        self._connection.close()

    def _answer(self, number: int, question: str, arguments: tuple[Any, ...]) -> None:
        try:
            message = pickle.dumps((number, "", (self._answers(question, *arguments), None)))
        except Exception as error:  # noqa: BLE001 - it is told to the one who asked
            message = pickle.dumps((number, "", (None, _portable(error, question))))
        self._outgoing.put(message)

    def _closed(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        for future in waiting.values():
            future.set_exception(ChannelClosed("the process that was asked has ended"))
        self._on_closed()


def _portable(error: Exception, question: str) -> Exception:
    """The error as it can be raised in the other process: one that says what is wrong as it is, any other by its name."""
    if isinstance(error, ConvoyError | ImportError):
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - what was written in the line
        except Exception:  # noqa: BLE001 - a constructor that wants more than the message
            return AnswerFailed(str(error))
        return error
    log.error("%s could not be answered", question, exc_info=error)
    return AnswerFailed(f"the other process could not answer {question!r}: {type(error).__name__}")
