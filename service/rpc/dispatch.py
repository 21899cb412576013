"""Incoming messages passed to their methods, for both transports. An exception fails its call and nothing else."""

from service.errors import RequestError, forget_traceback
from service.rpc.call import Receiver, Stream, StreamCall, Unary, UnaryCall
from service.rpc.message_parsing import Parsed, parse


def handle_unary(method: Unary, payload: bytes, call: UnaryCall) -> None:
    """Parses a unary call's small message, whose bytes it holds, and passes it to its handler; an exception fails the call."""
    try:
        shortcut = method.shortcut if call.grant is None else None
        known = None if shortcut is None else shortcut.read(payload, call)
        if known is not None:
            method.handle(known, call)
            return
        message = parse(method, payload)
        if call.grant is not None:
            call.grant.require_message(method.path, message)
        method.handle(message, call)
        if shortcut is not None:
            shortcut.learn(payload, message)
    except Exception as error:  # noqa: BLE001 - any error fails this call alone
        call.fail(error)


def handle_parsed(method: Unary, parsed: Parsed, call: UnaryCall) -> None:
    """Passes a parsed message to the handler of a unary call, or fails the call."""
    outcome, held_bytes, passing_bytes = parsed
    if call.ended:
        call.budget.give_back(held_bytes + passing_bytes)
        return
    call.held_bytes = held_bytes
    if isinstance(outcome, Exception):
        call.fail(outcome)
        return
    try:
        if call.grant is not None:
            call.grant.require_message(method.path, outcome)
        method.handle(outcome, call)
    except Exception as error:  # noqa: BLE001 - as in handle_unary
        call.fail(error)
    finally:
        call.budget.give_back(passing_bytes)


def open_stream(method: Stream, call: StreamCall) -> Receiver | None:
    """Opens a stream; if its handler raises, fails the call and returns None."""
    try:
        return method.open(call)
    except Exception as error:  # noqa: BLE001 - as in handle_unary
        call.fail(error)
        return None


def half_close(receiver: Receiver, call: StreamCall) -> None:
    """Tells a stream's receiver that the client will send no more."""
    if call.ended:
        return
    try:
        receiver.on_half_close()
    except Exception as error:  # noqa: BLE001 - as in handle_unary
        call.fail(error)


def deliver_small(method: Stream, payload: bytes, receiver: Receiver, call: StreamCall) -> None:
    """Parses a stream's next message, which is small and not compressed, unless it is known, and passes it to its receiver."""
    size = len(payload)
    if not call.budget.take(size):
        deliver(method, Parsed(call.budget.refusal()), receiver, call)
        return
    shortcut = method.shortcut if call.grant is None else None
    try:
        known = None if shortcut is None else shortcut.read(payload, call)
        message = parse(method, payload) if known is None else known
    except Exception as error:  # noqa: BLE001 - the receiver is told of it, or the call fails
        call.budget.give_back(size)
        forget_traceback(error)
        deliver(method, Parsed(error), receiver, call)
        return
    if deliver(method, Parsed(message, size), receiver, call) and known is None and shortcut is not None:
        shortcut.learn(payload, message)


def deliver(method: Stream, parsed: Parsed, receiver: Receiver, call: StreamCall) -> bool:
    """Passes a stream's next message to its receiver; True if that has accepted it."""
    outcome, held_bytes, passing_bytes = parsed
    call.holding.add(held_bytes)  # gives them back if the call has ended
    call.message_bytes = held_bytes
    try:
        if call.ended:
            return False
        if call.grant is not None:
            call.grant.require_current()
        if isinstance(outcome, Exception) and not (method.lenient and isinstance(outcome, RequestError)):
            call.fail(outcome)
        else:
            return bool(receiver.on_message(outcome))
    except Exception as error:  # noqa: BLE001 - as in handle_unary
        call.fail(error)
    finally:
        if call.message_bytes:
            call.holding.give_back(call.message_bytes)
        if passing_bytes:
            call.budget.give_back(passing_bytes)
    return False
