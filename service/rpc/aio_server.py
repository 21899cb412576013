"""The public transport: gRPC on grpcio's asyncio server.

One thread runs the event loop and is the transport's thread. Each call is a coroutine that passes its message to the method and, if
there is no answer yet, waits on a future that any thread may resolve. The loop takes about one message an iteration, so the
transport is idle when IDLE_ITERATIONS in a row have brought none.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import grpc

from service.errors import InvalidRequest
from service.process.vital_thread import vital_thread
from service.rpc.arrivals import Arrivals
from service.rpc.call import (
    NEVER,
    Call,
    Method,
    RpcMethodObserver,
    Stream,
    StreamCall,
    Unary,
    UnaryCall,
)
from service.rpc.dispatch import deliver, half_close, handle_parsed, open_stream
from service.rpc.gate import certificate_names
from service.rpc.message_parsing import MessageParser, Parsed, in_pool
from service.rpc.status import Metadata, Status
from service.rpc.transport import MAX_METADATA_ENTRIES, TOO_MUCH_METADATA, Options
from service.rpc.turns import ROUND_SECONDS, Turns

log = logging.getLogger(__name__)

IDLE_ITERATIONS = 8
"""After so many iterations in a row without a message `on_idle` is called."""

CANCELLATION_SECONDS = 0.1
BEAT_SECONDS = 0.2
"""How often the loop says that it goes round."""

MAX_WAITING = 256
"""Of messages that wait for their turn, so many are taken between two rounds: behind them may be one of another client."""

# Both classes are generic in their type stubs alone: at run time they take no parameters.
Context = Any  # grpc.aio.ServicerContext[bytes, bytes]
_Handler = Any  # grpc.RpcMethodHandler[bytes, bytes]


class AioServer:
    """A transport on `grpc.aio.server`."""

    name = "public"

    def __init__(self, options: Options) -> None:
        self.port = options.port
        self.addresses: Sequence[str] = ()
        self.last_round = math.inf
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._thread = vital_thread(self._loop.run_forever, "grpc")
        self._server: grpc.aio.Server | None = None
        self._gate = options.gate
        self._arrivals = Arrivals(options.message_seconds, options.memory)
        self._watching = False
        self._parser = MessageParser(options.budget, options.max_message_bytes)
        self._turns: Turns[Callable[[], object]] = Turns()
        self._idle_check_due = False
        self._empty_iterations = 0
        self._waiting = 0  # messages since the last round in which they were handled in turn
        self._timer: asyncio.TimerHandle | None = None

    @property
    def thread_id(self) -> int | None:
        """See Transport."""
        return self._thread.native_id

    def start(self) -> None:
        """See Transport."""
        self._thread.start()
        try:
            self._run_on_loop(self._start())
        except BaseException:
            self._close_loop()
            raise

    def stop(self, grace_seconds: float) -> None:
        """See Transport."""
        server = self._server
        if server is not None:
            if self._options.unix_socket is not None:
                self._options.unix_socket.remove()
            if self._options.connections is not None:
                self._options.connections.close()
            self._run_on_loop(server.stop(grace_seconds))
            self._server = None
        self._close_loop()

    def _run_on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _close_loop(self) -> None:
        if self._thread.is_alive():
            self._parser.close()  # before the loop, which takes what the pool has parsed
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self.last_round = math.inf
            self._loop.close()

    async def _start(self) -> None:
        options = self._options
        server = grpc.aio.server(options=options.channel_arguments())
        server.add_generic_rpc_handlers((_Handlers(options.methods, self._handler),))

        def add_port(address: str, credentials: grpc.ServerCredentials | None) -> int:
            try:
                return server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
            except RuntimeError:
                return 0

        try:
            self.port, self.addresses = options.listen(add_port)
        except BaseException:
            await server.start()  # grpcio stops only a server that has started
            await server.stop(None)
            raise
        await server.start()
        self._server = server
        self._beat()
        if options.connections is not None:
            options.connections.start()

    def _beat(self) -> None:
        self._loop.call_later(BEAT_SECONDS, self._beat)
        self.last_round = time.monotonic()

    def _handler(self, method: Method) -> _Handler:
        # No (de)serializers: `dispatch.py` parses the bytes, to say what is wrong with a malformed message.
        observer = self._options.observer.rpc_method(method.kind, method.service, method.name)
        if isinstance(method, Unary):
            # With a stream of messages grpcio calls the handler before the first has come, so that it can be waited for in bounds.
            return grpc.stream_unary_rpc_method_handler(partial(self._serve_unary, method, observer))

        async def stream(_: object, context: Context) -> None:
            await self._serve_stream(method, observer, context)

        return grpc.stream_stream_rpc_method_handler(stream)

    async def _serve_unary(self, method: Unary, observer: RpcMethodObserver, _: object, context: Context) -> bytes:
        await _check_metadata(context, observer)
        call = _AioUnaryCall(context, method, _deadline(context), _metadata(context), observer, self._options.budget)
        call.principal = self._options.principal_of(context.peer(), call.metadata)
        try:
            if self._gate is None or self._gate.admits(call):
                await self._receive(method, call, context)
            reply, status = await call.outcome
        except asyncio.CancelledError:
            if not call.overdue:
                call.cancelled_by_client()
                raise
            call.task.uncancel()
            reply, status = await call.outcome
        if call.initial_metadata:
            await context.send_initial_metadata(call.initial_metadata)
        if reply is None:
            await context.abort(status.code, status.message, status.trailing)
            raise AssertionError("abort returned")
        return reply

    async def _receive(self, method: Unary, call: "_AioUnaryCall", context: Context) -> None:
        """Waits for a unary call's message, and passes it to its handler."""
        waiting = self._arrivals.waiting
        waiting[call] = None
        self._watch_arrivals()
        try:
            payload = await context.read()
        finally:
            waiting.pop(call, None)
        if payload is grpc.aio.EOF:
            # Or the client has left: then grpcio cancels this in a moment.
            await asyncio.sleep(CANCELLATION_SECONDS)
            call.fail(InvalidRequest("the call has no message"))
            return
        try:
            parsed = await self._parse(call, [payload]) if in_pool(payload) else self._parser.parse(method, payload)
        except Exception as error:  # noqa: BLE001 - any error fails this call alone
            call.fail(error)
            return
        self._handle(call, partial(handle_parsed, method, parsed, call))

    async def _parse(self, call: Call, payloads: list[bytes]) -> Parsed:
        """Parses a call's large message in the pool."""
        future: asyncio.Future[Parsed] = self._loop.create_future()

        def passed_on(parsed: Parsed) -> None:
            if future.done():  # cancelled
                self._parser.give_back(parsed)
            else:
                future.set_result(parsed)

        self._parser.parse_in_pool(call, payloads.pop(), partial(_call_on, self._loop, passed_on))
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled():  # it was passed on just before
                self._parser.give_back(future.result())
            raise

    def _watch_arrivals(self) -> None:
        if not self._watching:
            self._watching = True
            self._loop.call_later(self._arrivals.check_seconds, self._check_arrivals)

    def _check_arrivals(self) -> None:
        self._watching = False
        if self._arrivals.any:
            self._watch_arrivals()
        for call, error in self._arrivals.overdue():
            call.fail(error)
            call.stop_waiting()  # type: ignore[attr-defined]

    async def _serve_stream(self, method: Stream, observer: RpcMethodObserver, context: Context) -> None:
        await _check_metadata(context, observer)
        call = _AioStreamCall(method, _deadline(context), _metadata(context), observer, self._options.budget)
        call.principal = self._options.principal_of(context.peer(), call.metadata)
        call.attach(self._loop, context)
        self._arrivals.streams[call] = None
        self._watch_arrivals()
        receiver = open_stream(method, call) if self._gate is None or self._gate.admits(call) else None
        reader = asyncio.ensure_future(self._read(method, call, receiver, context)) if receiver is not None else None
        try:
            status = await call.outcome
        except asyncio.CancelledError:
            call.cancelled_by_client()
            raise
        finally:
            self._arrivals.streams.pop(call, None)
            if reader is not None:
                reader.cancel()
        await call.send_initial_metadata()
        if status.code is not grpc.StatusCode.OK:
            await context.abort(status.code, status.message, status.trailing)

    async def _read(self, method: Stream, call: "_AioStreamCall", receiver: Any, context: Context) -> None:
        while True:
            await call.permits.acquire()
            call.reading = True
            payload = await context.read()
            call.reading = False
            if payload is grpc.aio.EOF:
                self._handle(call, partial(half_close, receiver, call))
                return
            try:
                parsed = await self._parse(call, [payload]) if in_pool(payload) else self._parser.parse(method, payload)
            except Exception as error:  # noqa: BLE001 - as in `_receive`
                call.fail(error)
                return
            del payload  # not while the next is waited for
            self._handle(call, partial(deliver, method, parsed, receiver, call))
            del parsed

    def _handle(self, call: Call, handle: Callable[[], object]) -> None:
        """Handles a message of a call: at once, or in its turn if several principals call. See turns.py."""
        turns = self._turns
        turns.saw(call.principal)
        turns.look()
        if turns.shared or turns:
            turns.add(call.principal, handle)
            self._waiting += 1
        else:
            handle()
        self._check_idle_soon()

    def _check_idle_soon(self) -> None:
        self._empty_iterations = 0
        if not self._idle_check_due:
            self._idle_check_due = True
            self._loop.call_soon(self._check_idle)

    def _check_idle(self) -> None:
        self._empty_iterations += 1
        if self._empty_iterations < IDLE_ITERATIONS and self._waiting < MAX_WAITING:
            self._loop.call_soon(self._check_idle)
        elif self._turns:
            self._waiting = self._empty_iterations = 0
            self._loop.call_soon(self._check_idle)
            self._handle_in_turn()
            self._options.on_idle()
        else:
            self._on_idle()

    def _handle_in_turn(self) -> None:
        until = time.monotonic() + ROUND_SECONDS
        while self._turns:
            self._turns.take()()
            if time.monotonic() >= until:
                return

    def _on_idle(self) -> None:
        self._idle_check_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        next_call = self._options.on_idle()
        if next_call == -math.inf:
            self._check_idle_soon()
        elif next_call != NEVER:
            self._timer = self._loop.call_later(max(0.0, next_call - time.monotonic()), self._on_idle)


class _Handlers(grpc.GenericRpcHandler):
    """The handlers of all methods; grpcio answers UNIMPLEMENTED to any other."""

    def __init__(self, methods: Any, behaviour: Callable[[Method], _Handler]) -> None:
        self._handlers = {method.path: behaviour(method) for method in methods}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler | None:
        return self._handlers.get(handler_call_details.method)


class _AioUnaryCall(UnaryCall):
    def __init__(self, context: Context, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._context = context
        self._loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[tuple[bytes | None, Status]] = self._loop.create_future()
        self.task: Any = asyncio.current_task()
        self.overdue = False

    def stop_waiting(self) -> None:
        """Has `_serve_unary` send the outcome, although no message has come."""
        self.overdue = True
        self.task.cancel()

    def peer(self) -> str:
        """See Call."""
        return str(self._context.peer())

    def certificate_names(self) -> Sequence[str]:
        """See Call."""
        return certificate_names(self._context.auth_context())

    def _send(self, payload: bytes | None, status: Status) -> None:
        _call_on(self._loop, _resolve, self.outcome, (payload, status))


class _AioStreamCall(StreamCall):
    def attach(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        self._loop = loop
        self._context = context
        self._writes: set[asyncio.Future[None]] = set()
        self._metadata_sent = False
        self.outcome: asyncio.Future[Status] = loop.create_future()
        self.permits = asyncio.Semaphore(0)

    def peer(self) -> str:
        """See Call."""
        return str(self._context.peer())

    def certificate_names(self) -> Sequence[str]:
        """See Call."""
        return certificate_names(self._context.auth_context())

    def stop_waiting(self) -> None:
        """Nothing is to be done: the stream's outcome is waited for beside its messages."""

    def _read(self) -> None:
        _call_on(self._loop, self.permits.release)

    def _write(self, payload: bytes, *, more: bool) -> None:  # noqa: ARG002 - grpcio's writes have no such hint
        _call_on(self._loop, self._begin_write, payload)

    def _begin_write(self, payload: bytes) -> None:
        write = asyncio.ensure_future(self._write_out(payload))
        self._writes.add(write)  # the loop itself keeps only a weak reference to a task
        write.add_done_callback(self._writes.discard)

    async def _write_out(self, payload: bytes) -> None:
        try:
            await self.send_initial_metadata()
            await self._context.write(payload)
        except Exception:  # noqa: BLE001 - grpcio raises several kinds when a client has left; the call's coroutine handles that
            log.debug("%s: writing a message failed, the client has left", self.method.path)
            return
        self.written()

    def _close(self, status: Status) -> None:
        _call_on(self._loop, _resolve, self.outcome, status)

    async def send_initial_metadata(self) -> None:
        """Sends the initial metadata, at the first call. Writes and the close never run at the same time."""
        if self.initial_metadata and not self._metadata_sent:
            self._metadata_sent = True
            await self._context.send_initial_metadata(self.initial_metadata)


def _resolve(future: "asyncio.Future[Any]", value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _call_on(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> None:
    """Calls a function on the loop's thread: at once if that is this thread."""
    if _running_loop() is loop:
        function(*arguments)
        return
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        log.debug("a reply came after the transport had stopped")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _deadline(context: Context) -> float:
    remaining = context.time_remaining()
    return NEVER if remaining is None else time.monotonic() + remaining


def _metadata(context: Context) -> Metadata:
    return tuple((key, value) for key, value in context.invocation_metadata() or ())


async def _check_metadata(context: Context, observer: RpcMethodObserver) -> None:
    """Ends a call with too much metadata."""
    if len(context.invocation_metadata() or ()) > MAX_METADATA_ENTRIES:
        observer.started()
        observer.handled(grpc.StatusCode.RESOURCE_EXHAUSTED.name, 0.0, None)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MUCH_METADATA)
