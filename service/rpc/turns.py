"""Messages wait for the turn of who sent them. Without I/O, for the transport's thread alone.

As long as one principal alone sends, messages are handled as they come. From the moment that another one calls, principals take
turns, message by message, and a round is cut after ROUND_SECONDS, so that its batch runs and what came meanwhile is looked at. The
line of a client that has a thousand calls in flight then waits here, behind nobody else's: a call of another client is handled
within a round. Short rounds cost some throughput, which is why one principal alone has long ones.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from service.requests.principal import Principal

T = TypeVar("T")

ROUND_SECONDS = 0.0005
"""How long messages are handled before what else there is to do gets its turn."""

SHARED_SECONDS = 1.0
"""For how long after a call of another principal turns are taken."""


class Turns(Generic[T]):
    """Messages of type T by principal.

    Attributes:
        shared: whether more than one principal has called lately. Renewed by `look`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.shared = False
        self._clock = clock
        self._last: Principal | None = None
        self._shared_until = -math.inf
        self._waiting: dict[Principal, deque[T]] = {}  # whose turn is next first

    def saw(self, principal: Principal) -> None:
        """Notes that a principal has called."""
        last = self._last
        if principal is not last:
            self._last = principal
            if last is not None and principal != last:
                self.shared = True
                self._shared_until = self._clock() + SHARED_SECONDS

    def look(self) -> None:
        """To be called now and then: finds out that one principal is alone again."""
        if self.shared and self._clock() >= self._shared_until:
            self.shared = False

    def add(self, principal: Principal, message: T) -> None:
        """Has a message wait for its turn."""
        line = self._waiting.get(principal)
        if line is None:
            line = self._waiting[principal] = deque()
        line.append(message)

    def take(self) -> T:
        """The next message. Only if there is one."""
        principal, line = next(iter(self._waiting.items()))
        message = line.popleft()
        del self._waiting[principal]
        if line:
            self._waiting[principal] = line
        return message

    def __bool__(self) -> bool:
        """Whether a message waits."""
        return bool(self._waiting)
