"""The interface between a gRPC transport and the methods that it serves.

A transport is given `Method`s and makes a `Call` for each RPC. The methods do not know which transport it is. The rules:

- A `Unary` method's `handle(request, call)` is called on the transport's thread and must not block. It may answer at once, or
  keep the call and answer later, from any thread, with `reply` or `fail`. The first of these wins; later ones return False.
- A `Stream` method is any RPC with a stream on either side. `open(call)` returns the `Receiver` of the stream's messages.
  Messages are pulled: each `receive()` lets one more message come, so messages not asked for are not in memory. `send` may be
  called from any thread; messages go out one by one in the order of the calls, and `sent` is called when the transport has taken
  the message.
- When the client cancels, its connection breaks or its deadline passes, the call ends: the `on_cancelled` callback runs once, on
  the transport's thread, and later replies are dropped.
- An exception raised by a handler fails its call with the status that `status.py` gives it; the transport goes on.
- When a transport has no more events waiting it calls `on_idle()`, which runs collected requests and returns the time on
  `time.monotonic` at which it is to be called again even without events (infinity: never).
"""

import logging
import math
import threading
import time
from abc import ABCMeta, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from google.protobuf.message import Message
from mypy_extensions import mypyc_attr

from service.access.grant import Grant
from service.errors import Cancelled, ConvoyError, DeadlineExceeded, Refused, forget_traceback
from service.observability.trace_context import HEADER, TraceContext, trace_context
from service.requests.byte_budget import UNLIMITED, ByteBudget, Holding
from service.requests.principal import Principal
from service.rpc.message_cost import default_max_fields
from service.rpc.status import OK, Metadata, Status, status_of

log = logging.getLogger(__name__)

OnIdle = Callable[[], float]
NEVER = math.inf


class RpcMethodObserver(Protocol):
    """Called at the start and at the end of every RPC to one method."""

    def started(self) -> None:
        """The RPC's headers have arrived."""

    def handled(self, code: str, seconds: float, trace: TraceContext | None) -> None:
        """The RPC has ended with the status code of this name."""


class RpcObserver(Protocol):
    """Gives each method its observer."""

    def rpc_method(self, kind: str, service: str, method: str) -> RpcMethodObserver:
        """The observer of one method; called once, before the transport starts."""


@dataclass(frozen=True)
class _Method:
    """`path` is `/package.Service/Method`, `request` the class of the messages that come in.

    `max_fields` returns how many fields a large message may have; see message_cost.py.
    """

    path: str
    request: type[Message]

    @property
    def service(self) -> str:
        """`package.Service`."""
        return self.path.split("/")[1]

    @property
    def name(self) -> str:
        """`Method`."""
        return self.path.split("/")[2]


class Shortcut(Protocol):
    """Reads messages that need not be parsed, see known_messages.py. Of clients that need no rights alone."""

    def read(self, payload: bytes, call: "Call", /) -> Any:
        """What the method takes in place of the message; None if it has to be parsed."""

    def learn(self, payload: bytes, message: Any, /) -> None:
        """Takes a message that was parsed, and that the method has accepted."""


@dataclass(frozen=True)
class Unary(_Method):
    """One message in, one message out. Its `shortcut` reads messages, if it can."""

    handle: "Callable[[Any, UnaryCall], None]"
    kind: Literal["unary"] = "unary"
    max_fields: Callable[[], int] = default_max_fields
    shortcut: Shortcut | None = None


@dataclass(frozen=True)
class Stream(_Method):
    """A stream of messages in, out, or both.

    A message that is refused ends the call, unless the method is `lenient`: then its receiver gets the RequestError in place of the
    message. Its `shortcut` reads messages, if it can.
    """

    open: "Callable[[StreamCall], Receiver]"
    kind: Literal["client_stream", "server_stream", "bidi_stream"]
    lenient: bool = False
    max_fields: Callable[[], int] = default_max_fields
    shortcut: Shortcut | None = None


Method = Unary | Stream


class Receiver(Protocol):
    """Takes the incoming messages of one stream, on the transport's thread."""

    def on_message(self, request: Any) -> bool | None:
        """One message, in answer to one `receive()`. True says that it was accepted, so that a `shortcut` learns from it."""

    def on_half_close(self) -> None:
        """The client will send no more messages, in answer to one `receive()`."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Call(metaclass=ABCMeta):
    """One RPC in progress. It ends exactly once: by the server's status, or because the client has cancelled."""

    __slots__ = (
        "_end", "_observer", "_on_cancelled", "budget", "deadline", "grant", "held_bytes", "initial_metadata", "metadata",
        "method", "principal", "started", "trace",
    )  # fmt: skip
    principal: Principal
    """Who calls. Transports set it before the handler sees the call."""

    def __init__(
        self, method: Method, deadline: float, metadata: Metadata, observer: RpcMethodObserver, budget: ByteBudget = UNLIMITED
    ) -> None:
        """A call that has just arrived.

        Args:
            method: what is called.
            deadline: in `time.monotonic` seconds, infinite if the client set none.
            metadata: the client's.
            observer: counts it.
            budget: what the bytes of its messages are taken from: for a unary call `held_bytes`, set by the transport's thread
                before the handler is called, and given back when the call ends.

        The handler may set `initial_metadata` before it first sends, replies or fails. `trace` is the client's trace context, if it
        sent one; `started` is when the call came, in `time.monotonic` seconds. `grant` is what `--auth` lets the client do, set by
        `gate.py`; None without `--auth`, and where nothing is asked.
        """
        self.method = method
        self.budget = budget
        self.held_bytes = 0
        self.deadline = deadline
        self.metadata = metadata
        self.grant: Grant | None = None
        self.trace: TraceContext | None = None
        for key, value in metadata:
            if key == HEADER:
                self.trace = trace_context(value)
                break
        self.initial_metadata: Metadata = ()
        self._observer = observer
        self.started = time.monotonic()
        self._end = threading.Lock()  # acquired once, by the thread that ends the call
        self._on_cancelled: Callable[[], None] | None = None
        observer.started()

    @property
    def ended(self) -> bool:
        """Whether the call has its status."""
        return self._end.locked()

    def on_cancelled(self, callback: Callable[[], None]) -> None:
        """Sets the callback for a cancelled call. Handlers call this before they return: no call is cancelled before that."""
        if not self._end.locked():
            self._on_cancelled = callback

    def fail(self, error: BaseException) -> bool:
        """Ends the call with the status of an error; False if it had ended already."""
        if not isinstance(error, ConvoyError):
            log.error("%s failed", self.method.path, exc_info=error)
        if self.grant is not None:
            self.count_refusal(error)
        forget_traceback(error)
        return self._finish(status_of(error))

    def count_refusal(self, error: BaseException) -> None:
        """Has it counted that the client, which is known, does not have a right that it needs, or has it no longer."""
        if isinstance(error, Refused) and self.grant is not None:
            self.grant.counter.refused(error, self.grant.principal, self.peer(), self.method.path)

    @abstractmethod
    def peer(self) -> str:
        """For logs: the client's address as gRPC has it, such as `ipv4:127.0.0.1:40404`."""

    @abstractmethod
    def certificate_names(self) -> Sequence[str]:
        """The names in the client's verified certificate; none without one."""

    def cancelled_by_client(self) -> None:
        """For the transport: the client has cancelled, its connection is broken, or its deadline has passed."""
        late = time.monotonic() >= self.deadline
        error = DeadlineExceeded("the deadline passed") if late else Cancelled("the client cancelled the call")
        if self._claim(status_of(error)) and self._on_cancelled is not None:
            on_cancelled, self._on_cancelled = self._on_cancelled, None
            try:
                on_cancelled()
            except Exception:
                log.exception("%s: the on_cancelled callback failed", self.method.path)

    def _claim(self, status: Status) -> bool:
        """Gives the call its status; False if it has one already."""
        if not self._end.acquire(False):
            return False
        if self.held_bytes:
            self.budget.give_back(self.held_bytes)
        self._observer.handled(status.name, time.monotonic() - self.started, self.trace)
        return True

    @abstractmethod
    def _finish(self, status: Status) -> bool:
        """Ends the call with a status; False if it had ended already."""


@mypyc_attr(allow_interpreted_subclasses=True)
class UnaryCall(Call):
    """A call that is answered with one message. Transports implement `_send`."""

    __slots__ = ()

    def reply(self, payload: bytes) -> bool:
        """Ends the call with OK and one serialised message; False if it had ended already."""
        if not self._claim(OK):
            return False
        self._on_cancelled = None
        self._send(payload, OK)
        return True

    def _finish(self, status: Status) -> bool:
        if not self._claim(status):
            return False
        self._on_cancelled = None
        self._send(None, status)
        return True

    @abstractmethod
    def _send(self, payload: bytes | None, status: Status) -> None:
        """For the transport: sends the message, if there is one, and the status. Called at most once, from any thread."""


@mypyc_attr(allow_interpreted_subclasses=True)
class StreamCall(Call):
    """A call that is answered with any number of messages. Transports implement `_read`, `_write` and `_close`.

    `holding` has what is taken from the budget for its messages. `message_bytes` are those of the message that is passed to the
    receiver just now: they are given back when `on_message` returns, unless it has set them to 0 to give them back itself.
    `reading` says whether the transport waits for a message, `asked_at` since when, in `time.monotonic` seconds.
    """

    __slots__ = ("_lock", "_outgoing", "_status", "asked_at", "holding", "message_bytes", "reading")

    def __init__(
        self, method: Method, deadline: float, metadata: Metadata, observer: RpcMethodObserver, budget: ByteBudget = UNLIMITED
    ) -> None:
        super().__init__(method, deadline, metadata, observer, budget)
        self.holding = Holding(budget)
        self.message_bytes = 0
        self.reading = False
        self.asked_at = self.started
        self._lock = threading.Lock()
        self._outgoing: deque[tuple[bytes, Callable[[], None] | None]] = deque()  # the first is being written
        self._status: Status | None = None

    def receive(self) -> None:
        """Asks for one more message: `Receiver.on_message` or `Receiver.on_half_close` will be called once for it.

        Not to be called again before that.
        """
        if not self._end.locked():
            self.asked_at = time.monotonic()
            self._read()

    def send(self, payload: bytes, sent: Callable[[], None] | None = None) -> bool:
        """Sends one serialised message; False if the call has ended. `sent` is called when the transport has taken it."""
        with self._lock:
            if self._end.locked():
                return False
            self._outgoing.append((payload, sent))
            if len(self._outgoing) > 1:
                return True
        self._write(payload, more=False)
        return True

    def finish(self) -> bool:
        """Ends the call with OK, after what was sent before; False if it had ended already."""
        return self._finish(OK)

    def _finish(self, status: Status) -> bool:
        with self._lock:
            if not self._claim(status):
                return False
            self._status = status
            self._on_cancelled = None
            idle = not self._outgoing
        if idle:
            self._close(status)
        return True

    def _claim(self, status: Status) -> bool:
        if not super()._claim(status):
            return False
        self.holding.close()
        return True

    def written(self) -> None:
        """For the transport, on its thread: the message given to `_write` is sent, the next may follow."""
        outgoing = self._outgoing
        with self._lock:
            _, sent = outgoing.popleft()
            left = len(outgoing)
            status = self._status
        if sent is not None:
            sent()
        if left:
            self._write_next(outgoing[0][0], more=left > 1)
        elif status is not None:
            self._close(status)

    def _write_next(self, payload: bytes, *, more: bool) -> None:
        """For `written`: as `_write`."""
        self._write(payload, more=more)

    @abstractmethod
    def _read(self) -> None:
        """For the transport: read one message and pass it to `deliver`."""

    @abstractmethod
    def _write(self, payload: bytes, *, more: bool) -> None:
        """For the transport: write one message, then call `written`. One at a time, from any thread.

        `more` says that another follows at once, so that both may be sent together.
        """

    @abstractmethod
    def _close(self, status: Status) -> None:
        """For the transport: send the status. Called at most once, after the last `written`, from any thread."""
