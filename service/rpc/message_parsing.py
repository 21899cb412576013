"""Messages from bytes: unfolded if they are compressed, counted if they are large, and parsed.

Small messages are parsed on the transport's thread, one after the other. Those that are compressed or of a megabyte and more are
parsed by a pool of two threads: the transport's thread goes on meanwhile, and no more than two are unfolded at a time. A thousand
times the work may be in a compressed message than in another of its size, and in the pool neither the turns of the transport nor
quotas apply. So the pool has turns of its own, message by message; it drops what nobody waits for any more; nobody waits long; and
methods that need no credentials take little.
"""

import logging
import time
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

from google.protobuf.message import DecodeError, Message

from service.access.rights import need_of
from service.errors import Cancelled, ConvoyError, InvalidRequest, RequestError, TooLarge, TooManyBytes, forget_traceback
from service.requests.byte_budget import RETRY_SECONDS, ByteBudget, out_of_memory
from service.requests.fair_threads import FairThreads
from service.rpc.call import Call, Method
from service.rpc.compression import FIRST_BYTES, unfold
from service.rpc.message_cost import LARGE_MESSAGE_BYTES, Layout, count, layout_of

log = logging.getLogger(__name__)

POOLED_MESSAGE_BYTES = 1024 * 1024
THREADS = 2

WAITING_SECONDS = 5.0
"""So long a message waits for its turn in the pool, at most. How long the compressed ones before it take is not known before."""

MAX_OPEN_BYTES = LARGE_MESSAGE_BYTES
"""Of a message, unfolded, to a method that needs no credentials: it has a name at most."""

Outcome = Message | Exception


class Parsed(NamedTuple):
    """A message, or why there is none, and the bytes that are taken from the budget for it.

    `held_bytes` are to be given back when the request is answered, `passing_bytes` when the message has been handled. An error has
    no traceback, whose frames hold the message: nobody looks at the error of a call that has ended meanwhile.
    """

    outcome: Outcome
    held_bytes: int = 0
    passing_bytes: int = 0


class MessageParser:
    """Parses the messages of one transport."""

    def __init__(self, budget: ByteBudget, max_message_bytes: int) -> None:
        self._budget = budget
        self._max_message_bytes = max_message_bytes
        self._pool = FairThreads(THREADS, "parse-messages")
        self._closed = False

    def close(self) -> None:
        """Ends the pool's threads, after the messages in hand; those that wait are not parsed, and `on_done` is told so."""
        self._closed = True
        self._pool.close()

    def parse(self, method: Method, message: bytes) -> Parsed:
        """Parses a message; takes its bytes from the budget, unless it is refused."""
        if message[:1] in FIRST_BYTES or len(message) >= LARGE_MESSAGE_BYTES:
            return self._parse_large(method, message)
        size = len(message)
        if not self._budget.take(size):
            return Parsed(self._budget.refusal())
        try:
            return Parsed(parse(method, message), size)
        except RequestError as error:
            self._budget.give_back(size)
            forget_traceback(error)
            return Parsed(error)

    def parse_in_pool(self, call: Call, message: bytes, on_done: Callable[[Parsed], None]) -> None:
        """Parses a call's message on a thread of the pool, in its principal's turn. Its bytes are taken meanwhile too.

        `on_done` is called once: there, or here if the message is refused at once. If it raises there, the call fails.
        """
        size = len(message)
        if not self._budget.take(size):
            on_done(Parsed(self._budget.refusal()))
            return
        until = time.monotonic() + WAITING_SECONDS
        try:
            self._pool.submit(call.principal, partial(self._run, call, [message], size, until, on_done))
        except Exception as error:  # noqa: BLE001 - without a thread, or memory for it, this message fails alone
            self._budget.give_back(size)
            on_done(Parsed(_refusal(call.method, error, size)))

    def _run(self, call: Call, messages: list[bytes], size: int, until: float, on_done: Callable[[Parsed], None]) -> None:
        if call.ended or self._closed:
            self._budget.give_back(size)
            parsed = Parsed(Cancelled("the call has ended before its message was parsed"))
        elif time.monotonic() >= until:
            self._budget.give_back(size)
            parsed = Parsed(TooManyBytes("too many large or compressed messages wait to be parsed; try again", RETRY_SECONDS))
        else:
            # A list, because the pool holds on to the job: the message must go as soon as it is parsed.
            parsed = self._parse_large(call.method, messages.pop(), size)
        try:
            on_done(parsed)
        except Exception as error:  # noqa: BLE001 - it fails this call alone
            self.give_back(parsed)
            call.fail(error)

    def give_back(self, parsed: Parsed) -> None:
        """For a message that is not handled, because its call has ended."""
        self._budget.give_back(parsed.held_bytes + parsed.passing_bytes)

    def _limit(self, method: Method) -> tuple[int, str]:
        """The most bytes of a message, and why."""
        if need_of(method.path).right == "open":
            return MAX_OPEN_BYTES, "this method needs no credentials"
        return self._max_message_bytes, "--max-message-bytes"

    def _parse_large(self, method: Method, message: bytes, taken: int = 0) -> Parsed:
        """Parses any message. Of it `taken` bytes are taken from the budget already; they are given back, or held."""
        budget = self._budget
        try:
            if not taken and not budget.take(len(message)):
                return Parsed(budget.refusal())
            taken = len(message)
            limit, reason = self._limit(method)
            if taken > limit:
                raise TooLarge(f"the message is larger than {limit} bytes ({reason})")
            if message[:1] in FIRST_BYTES:
                unfolded = unfold(message, budget, limit, reason)
                if unfolded is not None:
                    budget.give_back(taken)
                    message, taken = unfolded, len(unfolded)
            cost = count(message, _layout(method), method.max_fields())
            passing = cost.overhead_bytes
            if taken + passing > budget.limit_bytes:
                raise TooLarge(
                    f"the message needs {taken + passing} bytes of memory; at most {budget.limit_bytes} are given "
                    "(--max-inflight-bytes); tensors need least in raw_input_contents"
                )
            if not budget.take(passing):
                raise budget.refusal()
            try:
                return Parsed(parse(method, message), taken, passing)
            except BaseException:
                budget.give_back(passing)
                raise
        except Exception as error:  # noqa: BLE001 - any error fails this message alone
            budget.give_back(taken)
            return Parsed(_refusal(method, error, len(message)))


def in_pool(message: bytes) -> bool:
    """Whether a message is to be parsed in the pool."""
    return len(message) >= POOLED_MESSAGE_BYTES or message[:1] in FIRST_BYTES


def parse(method: Method, message: bytes) -> Message:
    """A message parsed at once. Raises RequestError."""
    try:
        return method.request.FromString(message)
    except (DecodeError, MemoryError) as error:
        raise _refusal(method, error, len(message)) from None


def _refusal(method: Method, error: Exception, size: int) -> Exception:
    """What a client is told of an error. protobuf says DecodeError when it has no memory, too."""
    if isinstance(error, MemoryError) or (isinstance(error, DecodeError) and not _can_allocate(2 * size)):
        return out_of_memory()
    if isinstance(error, DecodeError):
        return InvalidRequest(f"malformed message: not a {method.request.DESCRIPTOR.full_name}")
    if not isinstance(error, ConvoyError):
        log.error("%s: parsing a message failed", method.path, exc_info=error)
    forget_traceback(error)
    return error


def _can_allocate(size: int) -> bool:
    try:
        bytearray(size)
    except MemoryError:
        return False
    return True


@cache
def _layout(method: Method) -> Layout:
    return layout_of(method.request.DESCRIPTOR)
