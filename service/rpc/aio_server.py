"""The seam of `call.py` on grpcio's public asyncio server.

One thread runs the event loop and is the transport's thread. Each call is a coroutine that hands its message to the seam and, if
there is no answer yet, waits on a future that any thread may resolve. The loop takes about one message an iteration, so "no more
events waiting" is when LOOKS iterations in a row have brought none.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import grpc

from service.rpc.call import (
    NEVER,
    Method,
    MethodObserver,
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

log = logging.getLogger(__name__)

LOOKS = 8
"""So many iterations in a row must bring no message before a batch is formed."""

# Both classes are generic in their type stubs alone, so that they cannot be named with their parameters here.
Context = Any  # grpc.aio.ServicerContext[bytes, bytes]
_Handler = Any  # grpc.RpcMethodHandler[bytes, bytes]


class AioServer:
    """A transport on `grpc.aio.server`."""

    name = "public"

    def __init__(self, options: Options) -> None:
        self.port = options.port
        self._options = options
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="grpc", daemon=True)
        self._server: grpc.aio.Server | None = None
        self._quiet_due = False
        self._found_nothing = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """See Transport."""
        self._thread.start()
        try:
            self._on_loop(self._start())
        except BaseException:
            self._end_loop()
            raise

    def stop(self, grace_seconds: float) -> None:
        """See Transport."""
        server = self._server
        if server is not None:
            self._on_loop(server.stop(grace_seconds))
            self._server = None
        self._end_loop()

    def _on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end_loop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _start(self) -> None:
        options = self._options
        server = grpc.aio.server(options=options.channel_arguments())
        server.add_generic_rpc_handlers((_Handlers(options.methods, self._behaviour),))
        credentials = options.credentials()
        try:
            if credentials is None:
                self.port = server.add_insecure_port(options.address)
            else:
                self.port = server.add_secure_port(options.address, credentials)
        except RuntimeError:
            raise options.cannot_listen() from None
        await server.start()
        self._server = server

    def _behaviour(self, method: Method) -> _Handler:
        # No (de)serializers: messages cross as bytes, and the seam parses them so that it can say what is wrong.
        observer = self._options.observer.rpc_method(method.kind, method.service, method.name)
        if isinstance(method, Unary):
            return grpc.unary_unary_rpc_method_handler(partial(self._serve_unary, method, observer))

        async def stream(_: object, context: Context) -> None:
            await self._serve_stream(method, observer, context)

        return grpc.stream_stream_rpc_method_handler(stream)

    async def _serve_unary(self, method: Unary, observer: MethodObserver, payload: bytes, context: Context) -> bytes:
        call = _AioUnaryCall(method, _deadline(context), _metadata(context), observer)
        handle_unary(method, payload, call)
        del payload  # grpcio's abort leaves this frame to the garbage collector
        self._quiet_soon()
        try:
            reply, status = await call.outcome
        except asyncio.CancelledError:
            call.cancelled_by_client()
            raise
        if call.initial:
            await context.send_initial_metadata(call.initial)
        if reply is None:
            await context.abort(status.code, status.message, status.trailing)
            raise AssertionError("abort returned")
        return reply

    async def _serve_stream(self, method: Stream, observer: MethodObserver, context: Context) -> None:
        call = _AioStreamCall(method, _deadline(context), _metadata(context), observer)
        call.begin(self._loop, context)
        receiver = open_stream(method, call)
        reader = asyncio.ensure_future(self._read(method, call, receiver, context)) if receiver is not None else None
        try:
            status = await call.outcome
        except asyncio.CancelledError:
            call.cancelled_by_client()
            raise
        finally:
            if reader is not None:
                reader.cancel()
        await call.greet()
        if status.code is not grpc.StatusCode.OK:
            await context.abort(status.code, status.message, status.trailing)

    async def _read(self, method: Stream, call: "_AioStreamCall", receiver: Any, context: Context) -> None:
        while True:
            await call.permits.acquire()
            payload = await context.read()
            if payload is grpc.aio.EOF:
                deliver(method, None, receiver, call)
                return
            deliver(method, payload, receiver, call)
            self._quiet_soon()

    def _quiet_soon(self) -> None:
        self._found_nothing = 0
        if not self._quiet_due:
            self._quiet_due = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._found_nothing += 1
        if self._found_nothing < LOOKS:
            self._loop.call_soon(self._look)
        else:
            self._quiet()

    def _quiet(self) -> None:
        self._quiet_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wanted = self._options.on_idle()
        if wanted == -math.inf:
            self._quiet_soon()
        elif wanted != NEVER:
            self._timer = self._loop.call_later(max(0.0, wanted - time.monotonic()), self._quiet)


class _Handlers(grpc.GenericRpcHandler):
    """Finds the handler of a method; grpcio answers UNIMPLEMENTED where there is none."""

    def __init__(self, methods: Any, behaviour: Callable[[Method], _Handler]) -> None:
        self._handlers = {method.path: behaviour(method) for method in methods}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler | None:
        return self._handlers.get(handler_call_details.method)


class _AioUnaryCall(UnaryCall):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[tuple[bytes | None, Status]] = self._loop.create_future()

    def _send(self, payload: bytes | None, status: Status) -> None:
        _call_on(self._loop, _resolve, self.outcome, (payload, status))


class _AioStreamCall(StreamCall):
    def begin(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        self._loop = loop
        self._context = context
        self._writes: set[asyncio.Future[None]] = set()
        self._greeted = False
        self.outcome: asyncio.Future[Status] = loop.create_future()
        self.permits = asyncio.Semaphore(0)

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
            await self.greet()
            await self._context.write(payload)
        except Exception:  # noqa: BLE001 - grpcio raises several kinds once a client has left; the call's coroutine sees to it
            log.debug("%s: a message could not be written, the client has left", self.method.path)
            return
        self.written()

    def _close(self, status: Status) -> None:
        _call_on(self._loop, _resolve, self.outcome, status)

    async def greet(self) -> None:
        """Sends the initial metadata, once. Writes and the close come one after the other, so that there is no race for it."""
        if self.initial and not self._greeted:
            self._greeted = True
            await self._context.send_initial_metadata(self.initial)


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
        log.debug("an answer came after the transport had stopped")


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
