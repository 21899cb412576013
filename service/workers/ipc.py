"""Remote calls between two processes over one pipe, in both directions.

Either side may `call` at any time, and have many calls running; replies come in any order. Each incoming call runs on a thread of
its own: a handler may itself call the other side, which a bounded thread pool could deadlock on. A writer thread sends, so that
a caller can time out although the other process hangs and reads nothing. When the other process exits, however it does, the
pipe closes: pending calls fail at once.
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

from service.errors import ConvoyError, Unavailable, forget_traceback

log = logging.getLogger(__name__)


class IpcClosed(ConvoyError):
    """The other process has exited or closed its end of the pipe: there will be no reply."""


class IpcNotSent(IpcClosed):
    """It had before the call: the call was not sent."""


class RemoteError(ConvoyError):
    """The call failed in the other process, which has logged the cause."""


Handler = Callable[..., Any]
"""Carries out a call: takes the method's name and the arguments. The result or the error must be picklable."""


class IpcConnection:
    """One end of the pipe. Construct, then `start`; it closes when either process exits."""

    def __init__(self, pipe: Connection, handler: Handler, on_closed: Callable[[], None] = lambda: None) -> None:
        """`on_closed` is called once, when the other end has closed."""
        self._pipe = pipe
        self._handler = handler
        self._on_closed = on_closed
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()  # None ends the writer
        self._lock = threading.Lock()
        self._call_ids = itertools.count()
        self._pending: dict[int, Future[Any]] | None = {}  # None once closed
        self._reader = threading.Thread(target=self._read, name="ipc-read", daemon=True)
        self._writer = threading.Thread(target=self._write, name="ipc-write", daemon=True)

    def start(self) -> None:
        """Starts the reader and the writer thread."""
        self._reader.start()
        self._writer.start()

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Calls `method` in the other process, without blocking.

        Returns:
            A future of the result. It fails with the ConvoyError or ImportError raised there, RemoteError for any other error, or
            IpcClosed, IpcNotSent if the other process had exited already.
        """
        future: Future[Any] = Future()
        call_id = next(self._call_ids)
        message = pickle.dumps((call_id, method, arguments))
        with self._lock:
            if self._pending is None:
                future.set_exception(IpcNotSent("the other process has exited"))
                return future
            self._pending[call_id] = future
        self._outgoing.put(message)
        return future

    def _write(self) -> None:
        try:
            while (message := self._outgoing.get()) is not None:
                self._pipe.send_bytes(message)
        except OSError:
            self._close()
        except Exception:
            log.exception("writing to the other process failed")
            self._close()

    def _read(self) -> None:
        try:
            while True:
                call_id, method, content = pickle.loads(self._pipe.recv_bytes())  # noqa: S301 - our own process sent it
                if method:
                    self._start_handling(call_id, method, content)
                else:
                    self._resolve(call_id, *content)
        except (EOFError, OSError):
            pass
        except Exception:
            log.exception("reading from the other process failed")
        self._close()
        self._outgoing.put(None)
        self._writer.join()
        self._pipe.close()

    def _start_handling(self, call_id: int, method: str, arguments: tuple[Any, ...]) -> None:
        """Handles a call on a thread of its own. Without one, that call alone fails."""
        try:
            threading.Thread(target=self._handle, args=(call_id, method, arguments), name=f"ipc-{method}", daemon=True).start()
        except (RuntimeError, MemoryError) as error:
            log.error("no thread can be started for the call %s: %s", method, error)
            refusal = Unavailable("the process can start no thread for the request")
            self._outgoing.put(pickle.dumps((call_id, "", (None, refusal))))

    def _handle(self, call_id: int, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            reply = pickle.dumps((call_id, "", (self._handler(method, *arguments), None)))
        except Exception as error:  # noqa: BLE001 - the caller gets it
            reply = pickle.dumps((call_id, "", (None, _picklable(error, method))))
            forget_traceback(error)
        self._outgoing.put(reply)

    def _resolve(self, call_id: int, result: Any, error: Exception | None) -> None:
        with self._lock:
            future = self._pending.pop(call_id, None) if self._pending is not None else None
        if future is None:
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _close(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, None
        if pending is None:
            return
        for future in pending.values():
            future.set_exception(IpcClosed("the other process has exited"))
        self._on_closed()


def _picklable(error: Exception, method: str) -> Exception:
    """The error to raise in the calling process: itself if its message is meant for users, else RemoteError with its type."""
    if isinstance(error, ConvoyError | ImportError):
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - pickled in this line
        except Exception:  # noqa: BLE001 - its constructor takes more than the message
            return RemoteError(str(error))
        return error
    log.error("call %s failed", method, exc_info=error)
    return RemoteError(f"{method!r} failed in the other process: {type(error).__name__}")
