"""Incoming messages parsed and passed to their methods, for both transports. An exception fails its call and nothing else."""

from google.protobuf.message import DecodeError, Message

from service.errors import InvalidRequest
from service.rpc.call import Method, Receiver, Stream, StreamCall, Unary, UnaryCall


def handle_unary(method: Unary, payload: bytes, call: UnaryCall) -> None:
    """Passes a unary call's message to its handler; an exception fails the call."""
    try:
        message = method.request.FromString(payload)
        if call.grant is not None:
            call.grant.require_message(method.path, message)
        method.handle(message, call)
    except DecodeError:
        call.fail(_malformed(method))
    except Exception as error:  # noqa: BLE001 - any error fails this call alone
        call.fail(error)


def open_stream(method: Stream, call: StreamCall) -> Receiver | None:
    """Opens a stream; if its handler raises, fails the call and returns None."""
    try:
        return method.open(call)
    except Exception as error:  # noqa: BLE001 - as in handle_unary
        call.fail(error)
        return None


def deliver(method: Stream, payload: bytes | None, receiver: Receiver, call: StreamCall) -> None:
    """Passes a stream's next message, or None for its half-close, to its receiver."""
    if call.ended:
        return
    try:
        if call.grant is not None:
            call.grant.require_current()
        if payload is None:
            receiver.on_half_close()
        else:
            receiver.on_message(_parse_leniently(method, payload) if method.lenient else _parse(method, payload))
    except Exception as error:  # noqa: BLE001 - as in handle_unary
        call.fail(error)


def _parse_leniently(method: Method, payload: bytes) -> Message | InvalidRequest:
    try:
        return _parse(method, payload)
    except InvalidRequest as error:
        return error


def _parse(method: Method, payload: bytes) -> Message:
    try:
        return method.request.FromString(payload)
    except DecodeError:
        raise _malformed(method) from None


def _malformed(method: Method) -> InvalidRequest:
    return InvalidRequest(f"malformed message: not a {method.request.DESCRIPTOR.full_name}")
