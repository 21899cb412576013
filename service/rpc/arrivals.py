"""Calls whose message is on its way: how long it may take, and who has to go when memory runs short.

C core holds what has arrived of a message, and does not say how much that is: the budget of bytes counts it only once it is
complete. So these calls are watched by time, and all of them together by the memory of the process. It is short above
SHORT_OF_MEMORY of its limit. Then those calls end first that have waited least for their message: half of them or, above
VERY_SHORT, all but one, again and again until memory is left. Streams may just be idle: they are spared while unary calls wait,
but not for longer than SPARED_SECONDS, or a trickle of unary calls would shield streams that fill the memory.

The transport keeps the calls here and calls `overdue` every `check_seconds` while there are any. All on its thread.
"""

import math
import time
from typing import Any

from service.errors import DeadlineExceeded, RequestError, Unavailable
from service.process.malloc import return_freed_memory
from service.process.memory_limit import MemoryLimit
from service.requests.byte_budget import RETRY_SECONDS, out_of_memory
from service.rpc.call import Call

CHECK_SECONDS = 0.02
"""A client on this machine may send 50 MB within it."""

IDLE_CHECK_SECONDS = 0.2

YOUNG_SECONDS = 0.02
"""A call that has waited less long is left alone: calls that come and come, and hold little, must not end in place of those that
hold much."""

RECOVERY_SECONDS = 0.1
"""After so long the memory of calls that were ended is free."""

SHORT_OF_MEMORY = 0.7
HALF = 0.5
VERY_SHORT = 0.85

SPARED_SECONDS = 0.25
"""Of a flood of unary calls an eighth is left after it."""

TRIM_SECONDS = 1.0
"""How often malloc is asked for memory that it keeps."""


class Arrivals:
    """The calls that wait for a message.

    Attributes:
        waiting: unary calls without their message, the oldest first.
        streams: open streams; of each the transport says in `reading` whether it waits for a message.
    """

    def __init__(self, message_seconds: float, memory: MemoryLimit) -> None:
        self.waiting: dict[Any, None] = {}
        self.streams: dict[Any, None] = {}
        self._message_seconds = message_seconds
        self._memory = memory
        self._next_check = 0.0
        self._trimmed = -math.inf
        self._half_used = False
        self._short_since = math.inf

    @property
    def any(self) -> bool:
        """Whether there is anything to watch."""
        return bool(self.waiting or self.streams)

    @property
    def check_seconds(self) -> float:
        """When to look again. Streams may be open for days: they are a reason to hurry only when memory is half used."""
        return CHECK_SECONDS if self.waiting or self._half_used else IDLE_CHECK_SECONDS

    def overdue(self) -> list[tuple[Call, RequestError]]:
        """The calls that are to end now, and why. They are no longer in `waiting`."""
        now = time.monotonic()
        if now < self._next_check:
            return []
        self._next_check = now + CHECK_SECONDS
        late = self._late(now)
        return late or self._for_memory(now)

    def _late(self, now: float) -> list[tuple[Call, RequestError]]:
        late = []
        for call in self.waiting:
            if now - call.started < self._message_seconds:
                break
            late.append(call)
        for call in late:
            del self.waiting[call]
        message = f"the call's message has not arrived within {self._message_seconds:g} s (--message-seconds)"
        return [(call, DeadlineExceeded(message)) for call in late]

    def _for_memory(self, now: float) -> list[tuple[Call, RequestError]]:
        if not self._is_short(now):
            self._short_since = math.inf
            return []
        self._short_since = min(self._short_since, now)
        since = {call: call.started for call in self.waiting}
        if not since or now - self._short_since >= SPARED_SECONDS:
            since |= {call: call.asked_at for call in self.streams if call.reading}
        old = [call for call, asked_at in since.items() if now - asked_at >= YOUNG_SECONDS]
        if not old:
            return []
        self._next_check = now + RECOVERY_SECONDS
        most = len(old) - 1 if self._memory.is_short(VERY_SHORT) else 0
        ending = sorted(old, key=since.__getitem__, reverse=True)[: max(most, (len(old) + 1) // 2)]
        return [(call, self._end(call)) for call in ending]

    def _is_short(self, now: float) -> bool:
        """Whether memory is short and a call that waits may be why."""
        oldest = next(iter(self.waiting), None)
        if not self.streams and (oldest is None or now - oldest.started < YOUNG_SECONDS):
            return False
        self._half_used = self._memory.is_short(HALF)
        if not self._half_used or not self._memory.is_short(SHORT_OF_MEMORY):
            return False
        if now <= self._trimmed + TRIM_SECONDS:
            return True
        self._trimmed = now
        return_freed_memory()  # it may be free, and kept by malloc
        return self._memory.is_short(SHORT_OF_MEMORY)

    def _end(self, call: Any) -> RequestError:
        """Watches a call no more. The error that it ends with."""
        if call in self.waiting:
            del self.waiting[call]
            return out_of_memory()
        del self.streams[call]
        return Unavailable("the server is short of memory; send unanswered requests again on a new stream", RETRY_SECONDS)
