"""Incoming messages passed to their methods, for both transports. An exception fails its call and nothing else."""

from service.errors import RequestError
from service.rpc.call import Receiver, Stream, StreamCall, Unary, UnaryCall
from service.rpc.message_parsing import Parsed, parse


def handle_unary(method: Unary, payload: bytes, call: UnaryCall) -> None:
    """Parses a unary call's small message, whose bytes it holds, and passes it to its handler; an exception fails the call."""
    try:
        shortcut = method.shortcut if call.grant is None else None
        if shortcut is not None and shortcut.handle(payload, call):
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


def deliver(method: Stream, parsed: Parsed, receiver: Receiver, call: StreamCall) -> None:
    """Passes a stream's next message to its receiver."""
    outcome, held_bytes, passing_bytes = parsed
    call.holding.add(held_bytes)  # gives them back if the call has ended
    call.message_bytes = held_bytes
    try:
        if call.ended:
            return
        if call.grant is not None:
            call.grant.require_current()
        if isinstance(outcome, Exception) and not (method.lenient and isinstance(outcome, RequestError)):
            call.fail(outcome)
        else:
            receiver.on_message(outcome)
    except Exception as error:  # noqa: BLE001 - as in handle_unary
        call.fail(error)
    finally:
        if call.message_bytes:
            call.holding.give_back(call.message_bytes)
        if passing_bytes:
            call.budget.give_back(passing_bytes)
