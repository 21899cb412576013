"""The fast transport: gRPC on grpcio's C core, driven by one thread.

grpcio's public servers spend most of a small call handing it from thread to thread or through an event loop. The layer below
them, `grpc._cython.cygrpc`, has no such hand-overs: it is a completion queue, and calls on which operations are started. Here one
thread polls it, parses messages, runs batches of the model and replies. The layer is private to grpcio: this file alone uses it,
`c_core.py` says whether the installed grpcio has it as tested, and if not, `aio_server.py` takes its place.

C core in five sentences
    Operations are started together (C core calls them a batch) on a call, or as the request for a new call, with a *tag*. When they
    are done, the completion queue returns one *event* with that tag, whether they succeeded or not. A tag is any object; here it
    is the function that takes the event. Operations may be started from any thread; all events come out of the queue, to the one
    thread that polls. Each start has its event: that is what makes a clean shutdown possible.

The life of a unary call
    1. `server.request_call` asks for a new call. REQUESTED_CALLS are asked for at the start, and one more as soon as a call has
       come: a call for which none is open waits inside C core.
    2. A call arrives: `_arrived` gets an event with the call, its method, deadline and metadata. An unknown method is answered
       UNIMPLEMENTED at once. Otherwise two operations are started, each by itself: ReceiveCloseOnServer, whose event comes when
       the call is over and says whether it was cancelled, by the client, by its deadline (C core watches that) or by a broken
       connection; and ReceiveMessage.
    3. The message arrives: `received` collects it for the end of the round, unless it is large. None instead of bytes means that
       no message will come, because the client has left or has sent none; the close event tells which.
    4. The reply, from any thread: SendInitialMetadata, SendMessage and SendStatusFromServer, started together. `Call` lets only
       one thread end a call, so there is never a second reply.
    5. The close event: if it says cancelled and the call has no status yet, the call is cancelled. In either case the reference to
       C core's call is dropped, which matters: C core keeps the connection, and so the whole server, for as long as Python holds
       the call.

The life of a stream
    The same, but ReceiveMessage is started once for each `receive()`, so that messages not asked for stay with the client, by
    HTTP/2's flow control. Messages are sent one by one, the next when the event of the one before says that C core has taken it,
    which it does only while the client reads. A message that another is waiting behind is sent with the hint to buffer it, so that
    they leave in one write. SendInitialMetadata goes with the first.

A round
    Events are taken until none are waiting; then all collected messages are handled, the model runs, and all replies are started.
    Handled call by call instead, the same work takes a sixth more time: C core, Python and the model each want the processor's
    caches and branch predictors for themselves. Operations of other threads are started at once; so are the messages of a stream
    that follow one that has been sent, or there would be one a round.

Turns
    When more than one principal calls, messages wait in `turns.py`, and a round handles as many as fit into a short time, of each
    principal in turn. Calls wait in C core in the order in which they came, so they are taken from there as soon as they can be,
    which costs little, whoever they are from: only what follows is shared.

No more events waiting
    `poll` with a deadline in the past returns what is ready; `queue_timeout` says that it found nothing. C core looks at one
    connection a poll, so the queue counts as empty after IDLE_POLLS of them in a row that found nothing. Then the round goes on:
    messages, and `on_idle`, which runs a batch of the model. After it the transport polls again: until the time that `on_idle`
    returned, or not at all if more can be run at once. No other thread ever wakes the poll. It ends by itself after 0.2 s,
    because threads of the decoding pool and of HTTP may queue requests meanwhile: while all instances are busy, only `on_idle`
    looks at the deadlines of those.

Shutdown
    `stop` starts the server's shutdown, whose event comes when the last call is over; after the grace it cancels the remaining
    calls. Then the queue itself is shut down and polled until it says that it is empty.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import get_ident
from typing import Any

import grpc

from service.errors import InvalidRequest
from service.process.vital_thread import vital_thread
from service.requests.byte_budget import ByteBudget
from service.rpc.arrivals import Arrivals
from service.rpc.c_core import cygrpc
from service.rpc.call import (
    NEVER,
    Call,
    Receiver,
    RpcMethodObserver,
    Stream,
    StreamCall,
    Unary,
    UnaryCall,
)
from service.rpc.compression import FIRST_BYTES
from service.rpc.dispatch import deliver, deliver_small, half_close, handle_parsed, handle_unary, open_stream
from service.rpc.gate import certificate_names
from service.rpc.message_cost import LARGE_MESSAGE_BYTES
from service.rpc.message_parsing import MessageParser, Parsed, in_pool
from service.rpc.status import OK, Metadata, Status
from service.rpc.transport import MAX_METADATA_ENTRIES, TOO_MUCH_METADATA, Options
from service.rpc.turns import ROUND_SECONDS, Turns

log = logging.getLogger(__name__)

REQUESTED_CALLS = 64
IDLE_POLLS = 8
"""After so many polls in a row without an event the transport is idle: one poll looks at one connection."""

MAX_ROUND_EVENTS = 4096
"""A round takes so many events at most, even if more are waiting: most cost little. Behind them may be a call of another client."""

MAX_ROUND_MESSAGES = 170
"""A round handles so many messages at most."""

Tag = Callable[[Any], None]

_NO_METADATA: Metadata = ()
_NO_DEADLINE = 1e15  # seconds since 1970; C core gives its largest time for a call without a deadline


class CompletionQueueServer:
    """A transport on `cygrpc.Server`."""

    name = "fast"

    def __init__(self, options: Options) -> None:
        self.port = options.port
        self.addresses: Sequence[str] = ()
        self.last_round = math.inf
        self._options = options
        self._serving = vital_thread(self._serve, "grpc")
        self._methods = {
            method.path.encode(): (method, options.observer.rpc_method(method.kind, method.service, method.name))
            for method in options.methods
        }
        self._principal_of = options.principal_of
        self._gate = options.gate
        self.budget = options.budget
        self.arrivals = Arrivals(options.message_seconds, options.memory)
        self.parser = MessageParser(options.budget, options.max_message_bytes)
        self._unrequested = 0
        self._ident = 0  # the thread's, while it runs
        self.messages: list[_Message] = []
        self.turns: Turns[_Message] = Turns()
        self._handled_at_once = 0  # messages in this round
        self.outbox: list[tuple[Any, Sequence[Any], Tag]] = []
        self._stopping = False
        self._stopped = threading.Event()

    @property
    def thread_id(self) -> int | None:
        """See Transport."""
        return self._serving.native_id

    def start(self) -> None:
        """See Transport."""
        options = self._options
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server([(name.encode(), value) for name, value in options.channel_arguments()], False)
        self._server.register_completion_queue(self._queue)
        try:
            self.port, self.addresses = options.listen(self._add_port)
        except BaseException:
            self._server.start()  # C core stops only a server that has started
            self._serving.start()
            self.stop(0)
            raise
        self._server.start()
        for _ in range(REQUESTED_CALLS):
            self._request_call()
        self._serving.start()
        if options.connections is not None:
            options.connections.start()

    def _add_port(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        secure = () if credentials is None else (credentials._credentials,)  # type: ignore[attr-defined]
        port: int = self._server.add_http2_port(address.encode(), *secure)
        return port

    def stop(self, grace_seconds: float) -> None:
        """See Transport."""
        if not self._serving.is_alive():
            return
        if self._options.unix_socket is not None:
            self._options.unix_socket.remove()
        if self._options.connections is not None:
            self._options.connections.close()
        self._stopping = True
        self._server.shutdown(self._queue, self._shut_down)
        if not self._stopped.wait(grace_seconds):
            self._server.cancel_all_calls()
        self._serving.join()
        self._server.destroy()  # not on the thread: the last call may end while `cancel_all_calls` runs

    def _request_call(self) -> None:
        if not self._stopping:
            try:
                self._server.request_call(self._queue, self._queue, self._arrived)
            except ValueError:
                log.debug("the server is stopping")
            except MemoryError:
                self._unrequested += 1  # without a request for it no call would come any more

    def end_overdue_calls(self) -> None:
        """Ends the calls whose message takes too long, or that have to go for lack of memory."""
        try:
            for call, error in self.arrivals.overdue():
                call.fail(error)
        except Exception:
            log.exception("ending overdue calls failed")

    def _request_missing_calls(self) -> None:
        missing, self._unrequested = self._unrequested, 0
        for _ in range(missing):
            self._request_call()

    def _serve(self) -> None:
        self._ident = get_ident()
        poll = self._queue.poll
        on_idle = self._options.on_idle
        timeout = cygrpc.CompletionType.queue_timeout
        arrivals = self.arrivals
        wanted = NEVER
        while not self._stopped.is_set():
            self.last_round = time.monotonic()
            event = poll(time.time() + max(0.0, min(wanted - time.monotonic(), arrivals.check_seconds)))
            events = found_nothing = self._handled_at_once = 0
            while True:
                if event.completion_type != timeout:
                    try:
                        event.tag(event)
                    except Exception as error:  # noqa: BLE001 - any error fails its call alone
                        _fail_call(event.tag, error)
                    events += 1
                    found_nothing = 0
                else:
                    found_nothing += 1
                if found_nothing == IDLE_POLLS or events == MAX_ROUND_EVENTS:
                    break
                event = poll(0)
            # An event refers to its call, and C core waits for calls to be let go.
            event = None
            self._handle_messages()
            if self._unrequested:
                self._request_missing_calls()
            if arrivals.any:
                self.end_overdue_calls()
            try:
                wanted = on_idle()
            except Exception:
                log.exception("running due batches failed")
                wanted = NEVER
            self.flush()
            if self.turns or self.messages:
                wanted = -NEVER
        self.last_round = math.inf
        self._drain()

    def _handle_messages(self) -> None:
        turns = self.turns
        turns.look()
        if turns.shared or turns:
            self._handle_in_turn()
            return
        messages, self.messages = self.messages[:MAX_ROUND_MESSAGES], self.messages[MAX_ROUND_MESSAGES:]
        for call, payload in messages:
            self._handle(call, payload)

    def _handle_in_turn(self) -> None:
        turns, until = self.turns, time.monotonic() + ROUND_SECONDS
        while True:
            messages, self.messages = self.messages, []
            for message in messages:
                turns.add(message[0].principal, message)
            if not turns:
                return
            call, payload = turns.take()
            self._handle(call, payload)
            if time.monotonic() >= until:
                return
            if not turns:  # of each stream one message waits at most; the next is mostly here
                self._look_for_events()

    def _look_for_events(self) -> None:
        """Takes the events that are here."""
        for _ in range(MAX_ROUND_MESSAGES):
            event = self._queue.poll(0)
            if event.completion_type == cygrpc.CompletionType.queue_timeout:
                return
            try:
                event.tag(event)
            except Exception as error:  # noqa: BLE001 - any error fails its call alone
                _fail_call(event.tag, error)

    def may_handle_at_once(self) -> bool:
        """Whether a message of a stream, or a large one, is handled before the end of the round.

        Of a stream the next one follows at once. C core looks at connections when its queue is empty: without the limit a few
        streams could keep it from that for long.
        """
        if self.turns.shared or self._handled_at_once >= MAX_ROUND_MESSAGES:
            return False
        self._handled_at_once += 1
        return True

    def _handle(self, call: "_FastUnaryCall | _FastStreamCall", payload: Any) -> None:
        try:
            call.handle(payload)
        except Exception as error:  # noqa: BLE001 - any error fails its call alone
            _fail_call(call.handle, error)
        if self.outbox:  # a batch was full and has run, or the request was refused
            self.flush()

    def start_sending(self, core: Any, operations: Sequence[Any], tag: Tag) -> None:
        """Starts operations that send; at the end of the round, if this is the transport's thread."""
        if get_ident() == self._ident:
            self.outbox.append((core, operations, tag))
        else:
            core.start_server_batch(operations, tag)

    def flush(self) -> None:
        """Starts the operations that `start_sending` has collected."""
        outbox, self.outbox = self.outbox, []
        for core, operations, tag in outbox:
            try:
                core.start_server_batch(operations, tag)
            except Exception:
                log.exception("sending a reply failed")

    def _drain(self) -> None:
        """After the last call: handles the remaining events until the queue is empty."""
        self.parser.close()  # messages of calls that have ended may be in the pool; C core aborts if one comes after the shutdown
        self._queue.shutdown()
        while (event := self._queue.poll()).completion_type != cygrpc.CompletionType.queue_shutdown:
            try:
                event.tag(event)
            except Exception as error:  # noqa: BLE001 - any error fails its call alone
                _fail_call(event.tag, error)
            self._handle_messages()
            self.flush()
        while self.turns or self.messages:
            self._handle_messages()
            self.flush()

    def _shut_down(self, _: Any) -> None:
        self._stopped.set()

    def _arrived(self, event: Any) -> None:
        if not event.success:
            return  # the server is shutting down
        self._request_call()
        details = event.call_details
        offered = self._methods.get(details.method)
        core = event.call
        if offered is None:
            message = f"unknown method {details.method.decode(errors='replace')[:200]!r}"
            _reject(core, grpc.StatusCode.UNIMPLEMENTED, message)
            return
        method, observer = offered
        metadata = event.invocation_metadata
        if len(metadata) > MAX_METADATA_ENTRIES:
            observer.started()
            observer.handled(grpc.StatusCode.RESOURCE_EXHAUSTED.name, 0.0, None)
            _reject(core, grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MUCH_METADATA)
            return
        until = details.deadline
        deadline = NEVER if until > _NO_DEADLINE else time.monotonic() + until - time.time()
        if isinstance(method, Unary):
            call = _FastUnaryCall(method, deadline, metadata, observer, self.budget)
            call.server, call.core = self, core
            call.principal = self._principal_of(core.peer(), metadata)
            core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), call.closed)
            if self._gate is None or self._gate.admits(call):
                self.turns.saw(call.principal)
                self.arrivals.waiting[call] = None
                core.start_server_batch((cygrpc.ReceiveMessageOperation(0),), call.received)
        else:
            stream = _FastStreamCall(method, deadline, metadata, observer, self.budget)
            stream.server, stream.core = self, core
            stream.principal = self._principal_of(core.peer(), metadata)
            self.arrivals.streams[stream] = None
            core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), stream.closed)
            if self._gate is None or self._gate.admits(stream):
                stream.open(method)


class _FastUnaryCall(UnaryCall):
    """`core` is C core's call, None when it is over. `_arrived` sets both attributes: a constructor would cost more."""

    __slots__ = ("core", "server")
    server: CompletionQueueServer
    core: Any

    def received(self, event: Any) -> None:
        """Takes the event of ReceiveMessage."""
        self.server.arrivals.waiting.pop(self, None)
        payload = event.batch_operations[0].message()
        if payload is not None:
            size = len(payload)
            if self.ended:
                return
            if _is_large(payload) and self.server.may_handle_at_once():
                self._handle_large(payload)
            elif self.budget.take(size):
                self.held_bytes = size
                self.server.messages.append((self, payload))
            else:
                self.fail(self.budget.refusal())
        elif self.core is not None:
            # The client has left, or it has sent no message. If it has left, the close event is in the queue by now, before the
            # event of this start without operations.
            self.core.start_server_batch((), self._sent_nothing)

    def handle(self, payload: bytes) -> None:
        """Handles the message, whose bytes are held, in its turn."""
        if self.ended:
            return
        if _is_large(payload):
            self.budget.give_back(self.held_bytes)
            self.held_bytes = 0
            self._handle_large(payload)
        else:
            handle_unary(self.method, payload, self)  # type: ignore[arg-type]

    def _handle_large(self, payload: bytes) -> None:
        parser, core = self.server.parser, self.core
        if self.server.arrivals.any:  # the polls of a round that brings large messages may take half a second
            self.server.end_overdue_calls()
        if in_pool(payload):
            # The call is kept until then, and with it the server.
            parser.parse_in_pool(self, payload, lambda parsed: core.start_server_batch((), partial(self._parsed, parsed)))
        else:
            handle_parsed(self.method, parser.parse(self.method, payload), self)  # type: ignore[arg-type]

    def _parsed(self, parsed: Parsed, _: Any) -> None:
        handle_parsed(self.method, parsed, self)  # type: ignore[arg-type]

    def _sent_nothing(self, _: Any) -> None:
        self.fail(InvalidRequest("the call has no message"))

    def closed(self, event: Any) -> None:
        """Takes the event of ReceiveCloseOnServer."""
        if event.batch_operations[0].cancelled():
            self.cancelled_by_client()
        self.core = None

    def peer(self) -> str:
        """See Call."""
        return _peer(self.core)

    def certificate_names(self) -> Sequence[str]:
        """See Call."""
        return _certificate_names(self.core)

    def _send(self, payload: bytes | None, status: Status) -> None:
        core = self.core
        if core is None:
            return
        metadata = self.initial_metadata
        first = cygrpc.SendInitialMetadataOperation(metadata, 0) if metadata else _SEND_NO_METADATA
        last = _SEND_OK if status is OK else _send_status(status)
        operations = (first, last) if payload is None else (first, cygrpc.SendMessageOperation(payload, 0), last)
        self.server.start_sending(core, operations, _ignore)


class _FastStreamCall(StreamCall):
    """As `_FastUnaryCall`."""

    __slots__ = ("_metadata_sent", "_receiver", "_waiting_bytes", "core", "server")
    server: CompletionQueueServer
    core: Any

    def __init__(
        self, method: Stream, deadline: float, metadata: Metadata, observer: RpcMethodObserver, budget: ByteBudget
    ) -> None:
        super().__init__(method, deadline, metadata, observer, budget)
        self._metadata_sent = False
        self._waiting_bytes = 0  # of a message that waits for its turn
        self._receiver: Receiver | None = None

    def open(self, method: Stream) -> None:
        """Opens the stream."""
        self._receiver = open_stream(method, self)

    def received(self, event: Any) -> None:
        """Takes the event of one ReceiveMessage."""
        self.reading = False
        payload = event.batch_operations[0].message()
        if self._receiver is None or self._end.locked():
            return
        server = self.server
        server.turns.saw(self.principal)
        if server.may_handle_at_once() or not self.budget.take(size := len(payload or b"")):
            self.handle(payload)
            if server.outbox:  # as in `_handle`
                server.flush()
        else:
            self._waiting_bytes = size
            server.messages.append((self, payload))

    def handle(self, payload: bytes | None) -> None:
        """Handles one message, or the half-close."""
        if self._waiting_bytes:
            self.budget.give_back(self._waiting_bytes)
            self._waiting_bytes = 0
        receiver = self._receiver
        if receiver is None or self._end.locked():
            return
        if payload is None:
            half_close(receiver, self)
        elif in_pool(payload):
            self._parse_in_pool(payload)
        elif not _is_large(payload):
            deliver_small(self.method, payload, receiver, self)  # type: ignore[arg-type]
        else:
            method = self.method
            deliver(method, self.server.parser.parse(method, payload), receiver, self)  # type: ignore[arg-type]

    def _parse_in_pool(self, payload: bytes) -> None:
        core = self.core
        self.server.parser.parse_in_pool(self, payload, lambda parsed: core.start_server_batch((), partial(self._parsed, parsed)))

    def _parsed(self, parsed: Parsed, _: Any) -> None:
        if self._receiver is None:
            self.server.parser.give_back(parsed)
        else:
            deliver(self.method, parsed, self._receiver, self)  # type: ignore[arg-type]

    def closed(self, event: Any) -> None:
        """Takes the event of ReceiveCloseOnServer."""
        if event.batch_operations[0].cancelled():
            self.cancelled_by_client()
        self.core = self._receiver = None
        self.server.arrivals.streams.pop(self, None)

    def peer(self) -> str:
        """See Call."""
        return _peer(self.core)

    def certificate_names(self) -> Sequence[str]:
        """See Call."""
        return _certificate_names(self.core)

    def _read(self) -> None:
        core = self.core
        if core is not None:
            self.reading = True
            core.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self.received)

    def _write(self, payload: bytes, *, more: bool) -> None:
        core = self.core
        if core is not None:
            flags = cygrpc.WriteFlag.buffer_hint if more else 0
            self.server.start_sending(core, (*self._metadata_once(), cygrpc.SendMessageOperation(payload, flags)), self._wrote)

    def _write_next(self, payload: bytes, *, more: bool) -> None:
        core = self.core
        if core is not None:
            flags = cygrpc.WriteFlag.buffer_hint if more else 0
            core.start_server_batch((cygrpc.SendMessageOperation(payload, flags),), self._wrote)

    def _wrote(self, event: Any) -> None:
        if event.success:
            self.written()

    def _close(self, status: Status) -> None:
        core = self.core
        if core is not None:
            self.server.start_sending(core, (*self._metadata_once(), _send_status(status)), _ignore)

    def _metadata_once(self) -> tuple[Any, ...]:
        """The operation that sends the initial metadata, at the first call. Writes and the close never run at the same time."""
        if self._metadata_sent:
            return ()
        self._metadata_sent = True
        return (cygrpc.SendInitialMetadataOperation(self.initial_metadata, 0),)


def _peer(core: Any) -> str:
    return "" if core is None else core.peer().decode(errors="replace")


def _certificate_names(core: Any) -> Sequence[str]:
    return () if core is None else certificate_names({key.decode(): values for key, values in cygrpc.auth_context(core).items()})


_Message = tuple[_FastUnaryCall | _FastStreamCall, Any]
"""A call, and its message; None for the half-close of a stream."""


def _is_large(message: bytes) -> bool:
    return len(message) >= LARGE_MESSAGE_BYTES or message[:1] in FIRST_BYTES


_SEND_NO_METADATA = cygrpc.SendInitialMetadataOperation(_NO_METADATA, 0)
_SEND_OK = cygrpc.SendStatusFromServerOperation(_NO_METADATA, grpc.StatusCode.OK.value[0], b"", 0)
"""Shared by all calls: an operation that sends no metadata and no text holds nothing of its call."""


def _send_status(status: Status) -> Any:
    return cygrpc.SendStatusFromServerOperation(status.trailing, status.number, status.message.encode(), 0)


def _reject(core: Any, code: grpc.StatusCode, message: str) -> None:
    operations = (
        cygrpc.SendInitialMetadataOperation(_NO_METADATA, 0),
        cygrpc.ReceiveCloseOnServerOperation(0),
        cygrpc.SendStatusFromServerOperation(_NO_METADATA, code.value[0], message.encode(), 0),
    )
    core.start_server_batch(operations, _ignore)


def _fail_call(tag: Tag, error: Exception) -> None:
    """Ends the call whose event or message could not be handled, so that its client does not wait for an answer."""
    log.error("handling an event of the completion queue failed", exc_info=error)
    bound = tag.func if isinstance(tag, partial) else tag
    call = getattr(bound, "__self__", None)
    if isinstance(call, Call):
        try:
            call.fail(error)
        except Exception:
            log.exception("a call could not be ended")


def _ignore(_: Any) -> None:
    pass
