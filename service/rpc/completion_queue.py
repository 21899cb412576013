"""The seam of `call.py` on grpcio's C core, driven by one thread: the fast transport.

grpcio's public servers spend most of a small call handing it from thread to thread or through an event loop. The layer below
them, `grpc._cython.cygrpc`, has no such hand-overs: it is a completion queue and calls on which operations are started. This
file drives it with one thread that polls, parses, runs what may run at once, and replies. It is grpcio's private layer: every
use of it stands in this file, `why_not` says whether the installed grpcio has it as it was tested, and if it has not,
`aio_server.py` takes over.

C core in five sentences
    A *batch* is a set of operations started together on a call, or the request for a new call, together with a *tag*. When the
    batch is done, the completion queue gives out one *event* with that tag, whether it went well or not. Tags are any object;
    here a tag is the function that takes the event. Batches may be started from any thread; their events all come out of the
    queue, to the one thread that polls. An event for each batch, always: that is what makes a clean end possible.

The life of a unary call
    1. `server.request_call` arms a slot. ARMED slots are armed at the start, and each is armed again first thing when a call has
       taken it: a call that finds no slot waits inside C core.
    2. A call arrives: `_arrived` gets an event with the call, its method, deadline and metadata. A method that nobody offers is
       answered UNIMPLEMENTED on the spot. For any other two batches are started at once:
       ReceiveCloseOnServer, whose event comes when the call is over and says whether it was cancelled, by the client, by
       its deadline (C core watches that) or by a broken connection; and ReceiveMessage.
    3. The message is in: `received` puts it with the others of this round, unless it is large. None instead of bytes means that
       none will come, because the client has left or has sent nothing; the close event tells which.
    4. The answer, from whichever thread: one batch of SendInitialMetadata, SendMessage and SendStatusFromServer. Whoever
       sends it has first won the seam's race to end the call, so there is never a second.
    5. The close event: if it says cancelled and nobody had ended the call, the seam tells whoever works on it. In either case
       the call object is let go, which matters: C core keeps the connection, and so the whole server, for as long as
       Python holds the call.

The life of a stream
    The same, but ReceiveMessage is started once for each `receive()`, so that what nobody asked for stays in HTTP/2's
    flow-control window, with the client; and messages are sent one batch each, the next when the event of the one before says
    that C core has taken it, which it does only while the client reads. A message that another is waiting behind is sent with the
    hint to buffer it, so that they leave in one write. SendInitialMetadata goes with the first.

A round
    Events are taken until no more are waiting; then the messages that came are handed to the seam, the model runs, and what all of
    that sends is started, each of these in a row. Done by turns, a call after the other, the same work takes a sixth more time:
    C core, Python and the model each want the processor's caches and branch predictors for themselves. What other threads send
    is started at once; so are the messages of a stream that follow when the one before is out, or there would be one a round.

No more events waiting
    `poll` with a deadline in the past returns what is ready; `queue_timeout` says that it found nothing. C core looks at one
    connection a poll, so only when LOOKS of them in a row have found nothing is there nothing. Then the round goes on: messages,
    and `on_idle`, which runs a batch of the model. After it the transport polls again: until the time that `on_idle` asked for, or
    not at all if more can be run at once. No other thread ever wakes the poll; because work may come in from the decoding threads
    meanwhile, it ends by itself after POLL_SECONDS.

The end
    `stop` starts the server's shutdown, whose event comes when the last call is over; after the grace it cancels what is
    left. Then the queue itself is shut down and polled until it says that it is empty.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

import grpc

from service.errors import InvalidRequest
from service.rpc.call import (
    NEVER,
    MethodObserver,
    Receiver,
    Stream,
    StreamCall,
    Unary,
    UnaryCall,
    deliver,
    handle_unary,
    open_stream,
)
from service.rpc.status import Metadata, Status
from service.rpc.transport import Options

try:
    from grpc._cython import cygrpc  # type: ignore[attr-defined]  # noqa: TID251 - this is the file that may
except ImportError:
    cygrpc = None

log = logging.getLogger(__name__)

TESTED = ((1, 81), (1, 85))
"""The lowest and the newest minor version of grpcio that the tests are run with."""

ARMED = 64
POLL_SECONDS = 0.2
LOOKS = 8
"""So many polls in a row must find nothing before it counts as quiet: one poll looks at one connection."""

MOST_EVENTS = 512
"""After so many events without a pause, what has been collected is run all the same."""

LARGE_BYTES = 64 * 1024
"""A message of so many bytes does not wait for the end of the round: there may be MOST_EVENTS of them."""

_NAMES = {
    "Server": ("register_completion_queue", "add_http2_port", "start", "request_call", "shutdown", "cancel_all_calls", "destroy"),
    "CompletionQueue": ("poll", "shutdown"),
    "Call": ("start_server_batch",),
    "CompletionType": ("queue_shutdown", "queue_timeout", "operation_complete"),
    "StatusCode": ("ok",),
    "WriteFlag": ("buffer_hint",),
    "SendInitialMetadataOperation": (),
    "SendMessageOperation": (),
    "SendStatusFromServerOperation": (),
    "ReceiveMessageOperation": (),
    "ReceiveCloseOnServerOperation": (),
}  # fmt: skip

Tag = Callable[[Any], None]

_NO_METADATA: Metadata = ()
_NO_DEADLINE = 1e15  # seconds since 1970; C core gives its largest time for a call without a deadline


def why_not() -> str:
    """Why the fast transport cannot be used with the installed grpcio; empty if it can."""
    if cygrpc is None:
        return "grpcio has no grpc._cython.cygrpc"
    for name, attributes in _NAMES.items():
        missing = [attribute for attribute in attributes if not hasattr(getattr(cygrpc, name, None), attribute)]
        if missing or not hasattr(cygrpc, name):
            return f"grpcio {grpc.__version__}: cygrpc.{name} is not as it was tested"
    major_minor = tuple(int(part) for part in grpc.__version__.split(".")[:2])
    if not TESTED[0] <= major_minor <= TESTED[1]:
        tested = " to ".join(".".join(map(str, version)) for version in TESTED)
        return f"grpcio {grpc.__version__} was not tested with it (tested: {tested})"
    try:
        _rehearse()
    except Exception as error:  # noqa: BLE001 - a private layer that has changed may raise anything
        return f"grpcio {grpc.__version__}: cygrpc does not work as it was tested ({type(error).__name__}: {error})"
    return ""


class CompletionQueueServer:
    """A transport on `cygrpc.Server`."""

    name = "fast"

    def __init__(self, options: Options) -> None:
        self.port = options.port
        self._options = options
        self._thread = threading.Thread(target=self._serve, name="grpc", daemon=True)
        self._methods = {
            method.path.encode(): (method, options.observer.rpc_method(method.kind, method.service, method.name))
            for method in options.methods
        }
        self._ident = 0  # the thread's, while it runs
        self.messages: list[tuple[_FastUnaryCall, bytes]] = []
        self._outbox: list[tuple[Any, Sequence[Any], Tag]] = []
        self._stopping = False
        self._stopped = threading.Event()

    def start(self) -> None:
        """See Transport."""
        options = self._options
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server([(name.encode(), value) for name, value in options.channel_arguments()], False)
        self._server.register_completion_queue(self._queue)
        credentials = options.credentials()
        address = options.address.encode()
        if credentials is None:
            self.port = self._server.add_http2_port(address)
        else:
            self.port = self._server.add_http2_port(address, credentials._credentials)  # type: ignore[attr-defined]
        if self.port == 0:
            raise options.cannot_listen()
        self._server.start()
        for _ in range(ARMED):
            self._arm()
        self._thread.start()

    def stop(self, grace_seconds: float) -> None:
        """See Transport."""
        if not self._thread.is_alive():
            return
        self._stopping = True
        self._server.shutdown(self._queue, self._shut_down)
        if not self._stopped.wait(grace_seconds):
            self._server.cancel_all_calls()
        self._thread.join()

    def _arm(self) -> None:
        if not self._stopping:
            try:
                self._server.request_call(self._queue, self._queue, self._arrived)
            except ValueError:
                log.debug("the server began to stop just now")

    def _serve(self) -> None:
        self._ident = get_ident()
        poll = self._queue.poll
        on_idle = self._options.on_idle
        timeout = cygrpc.CompletionType.queue_timeout
        wanted = NEVER
        while not self._stopped.is_set():
            event = poll(time.time() + max(0.0, min(wanted - time.monotonic(), POLL_SECONDS)))
            events = found_nothing = 0
            while True:
                if event.completion_type != timeout:
                    try:
                        event.tag(event)
                    except Exception:
                        log.exception("an event of the completion queue could not be handled")
                    events += 1
                    found_nothing = 0
                else:
                    found_nothing += 1
                if found_nothing == LOOKS or events == MOST_EVENTS:
                    break
                event = poll(0)
            # An event refers to its call, and C core waits for calls to be let go.
            event = None
            self._handle_messages()
            try:
                wanted = on_idle()
            except Exception:
                log.exception("what was collected could not be run")
                wanted = NEVER
            self.start_batches()
        self._drain()

    def _handle_messages(self) -> None:
        messages, self.messages = self.messages, []
        for call, payload in messages:
            if not call.ended:
                handle_unary(call.method, payload, call)  # type: ignore[arg-type]
            if self._outbox:  # a batch was full and has run, or the request was refused
                self.start_batches()

    def begin(self, core: Any, operations: Sequence[Any], tag: Tag) -> None:
        """Starts a batch that sends; at the end of the round, if this is the transport's thread."""
        if get_ident() == self._ident:
            self._outbox.append((core, operations, tag))
        else:
            core.start_server_batch(operations, tag)

    def start_batches(self) -> None:
        """Starts what `begin` has collected."""
        outbox, self._outbox = self._outbox, []
        for core, operations, tag in outbox:
            try:
                core.start_server_batch(operations, tag)
            except Exception:
                log.exception("an answer could not be sent")

    def _drain(self) -> None:
        """After the last call: hands out what is left in the queue until it is empty."""
        self._server.destroy()
        self._queue.shutdown()
        while (event := self._queue.poll()).completion_type != cygrpc.CompletionType.queue_shutdown:
            event.tag(event)
            self._handle_messages()
            self.start_batches()

    def _shut_down(self, _: Any) -> None:
        self._stopped.set()

    def _arrived(self, event: Any) -> None:
        if not event.success:
            return  # a slot that the shutdown gave back
        self._arm()
        details = event.call_details
        offered = self._methods.get(details.method)
        core = event.call
        if offered is None:
            _reject(core, details.method)
            return
        method, observer = offered
        until = details.deadline
        deadline = NEVER if until > _NO_DEADLINE else time.monotonic() + until - time.time()
        if isinstance(method, Unary):
            call = _FastUnaryCall(method, deadline, event.invocation_metadata, observer)
            call.server, call.core = self, core
            core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), call.closed)
            core.start_server_batch((cygrpc.ReceiveMessageOperation(0),), call.received)
        else:
            stream = _FastStreamCall(method, deadline, event.invocation_metadata, observer)
            stream.server, stream.core = self, core
            core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), stream.closed)
            stream.open(method)


class _FastUnaryCall(UnaryCall):
    """Whoever makes it sets `server` and `core`, C core's call until it is over: a constructor of its own would cost more."""

    __slots__ = ("core", "server")
    server: CompletionQueueServer
    core: Any

    def received(self, event: Any) -> None:
        """Takes the event of ReceiveMessage."""
        payload = event.batch_operations[0].message()
        if payload is not None:
            if len(payload) < LARGE_BYTES:
                self.server.messages.append((self, payload))
            else:
                handle_unary(self.method, payload, self)  # type: ignore[arg-type]
        elif self.core is not None:
            # The client has left, or it has sent nothing. If it has left, the close event is in the queue by now: an empty batch's
            # event comes behind it.
            self.core.start_server_batch((), self._sent_nothing)

    def _sent_nothing(self, _: Any) -> None:
        self.fail(InvalidRequest("the call has no message"))

    def closed(self, event: Any) -> None:
        """Takes the event of ReceiveCloseOnServer."""
        if event.batch_operations[0].cancelled():
            self.cancelled_by_client()
        self.core = None

    def _send(self, payload: bytes | None, status: Status) -> None:
        core = self.core
        if core is None:
            return
        operations = [
            cygrpc.SendInitialMetadataOperation(self.initial, 0),
            cygrpc.SendStatusFromServerOperation(status.trailing, status.number, status.message.encode(), 0),
        ]
        if payload is not None:
            operations.append(cygrpc.SendMessageOperation(payload, 0))
        self.server.begin(core, operations, _ignore)


class _FastStreamCall(StreamCall):
    """As `_FastUnaryCall`."""

    __slots__ = ("_greeted", "_receiver", "core", "server")
    server: CompletionQueueServer
    core: Any

    def __init__(self, method: Stream, deadline: float, metadata: Metadata, observer: MethodObserver) -> None:
        super().__init__(method, deadline, metadata, observer)
        self._greeted = False
        self._receiver: Receiver | None = None

    def open(self, method: Stream) -> None:
        """Opens the stream."""
        self._receiver = open_stream(method, self)

    def received(self, event: Any) -> None:
        """Takes the event of one ReceiveMessage."""
        if self._receiver is not None:
            deliver(self.method, event.batch_operations[0].message(), self._receiver, self)  # type: ignore[arg-type]

    def closed(self, event: Any) -> None:
        """Takes the event of ReceiveCloseOnServer."""
        if event.batch_operations[0].cancelled():
            self.cancelled_by_client()
        self.core = self._receiver = None

    def _read(self) -> None:
        core = self.core
        if core is not None:
            core.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self.received)

    def _write(self, payload: bytes, *, more: bool) -> None:
        core = self.core
        if core is not None:
            flags = cygrpc.WriteFlag.buffer_hint if more else 0
            self.server.begin(core, (*self._greeting(), cygrpc.SendMessageOperation(payload, flags)), self._wrote)

    def _wrote(self, event: Any) -> None:
        if event.success:
            self.written()
            self.server.start_batches()

    def _close(self, status: Status) -> None:
        core = self.core
        if core is not None:
            self.server.begin(core, (*self._greeting(), _status(status)), _ignore)

    def _greeting(self) -> tuple[Any, ...]:
        """The initial metadata, once. Writes and the close come one after the other, so that there is no race for it."""
        if self._greeted:
            return ()
        self._greeted = True
        return (cygrpc.SendInitialMetadataOperation(self.initial, 0),)


def _status(status: Status) -> Any:
    return cygrpc.SendStatusFromServerOperation(status.trailing, status.number, status.message.encode(), 0)


def _reject(core: Any, method: bytes) -> None:
    message = f"no method {method.decode(errors='replace')[:200]!r} here".encode()
    operations = (
        cygrpc.SendInitialMetadataOperation(_NO_METADATA, 0),
        cygrpc.ReceiveCloseOnServerOperation(0),
        cygrpc.SendStatusFromServerOperation(_NO_METADATA, grpc.StatusCode.UNIMPLEMENTED.value[0], message, 0),
    )
    core.start_server_batch(operations, _ignore)


def _ignore(_: Any) -> None:
    pass


def _rehearse() -> None:
    """Goes through a server's start and end, without a call."""
    queue = cygrpc.CompletionQueue()
    server = cygrpc.Server([(b"grpc.so_reuseport", 0)], False)
    server.register_completion_queue(queue)
    server.add_http2_port(b"127.0.0.1:0")
    server.start()
    server.request_call(queue, queue, "call")
    server.shutdown(queue, "shutdown")
    tags = {queue.poll(time.time() + 10).tag for _ in range(2)}
    server.destroy()
    queue.shutdown()
    if tags != {"call", "shutdown"} or queue.poll(time.time() + 10).completion_type != cygrpc.CompletionType.queue_shutdown:
        raise RuntimeError("a server did not shut down as expected")
