"""One budget of bytes for all requests in flight, of both ports.

A request's bytes are taken before anything is made of them: of a gRPC message before it is parsed, of an HTTP body while it is
read. They are given back when the request has been answered, refused or given up. What does not fit is refused at once, with a time
to retry, rather than waited for: those who wait need memory too.
"""

import threading

from service.errors import TooLarge, TooManyBytes

RETRY_SECONDS = 0.5
"""After so long a client that was refused may try again: most requests are answered within it."""

SHARE_OF_MEMORY = 4
"""By default the budget is this part of the memory limit. While a message is parsed there are two to three copies of it, and
models, batches and decoded pictures need their part."""


class ByteBudget:
    """Counts the bytes in flight. All methods may be called from any thread."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def in_flight_bytes(self) -> int:
        """Bytes taken and not given back."""
        return self._taken

    def take(self, count: int) -> bool:
        """Takes `count` bytes; False, and nothing is taken, if fewer are left. Whoever took bytes gives back as many, once."""
        with self._lock:
            taken = self._taken + count
            if taken > self.limit_bytes:
                return False
            self._taken = taken
        return True

    def give_back(self, count: int) -> None:
        """Gives back bytes that were taken."""
        with self._lock:
            self._taken -= count

    def refusal(self) -> TooManyBytes:
        """The error for a request whose bytes could not be taken."""
        return TooManyBytes(
            f"too many bytes of requests are in flight: at most {self.limit_bytes} are accepted (--max-inflight-bytes); try again",
            RETRY_SECONDS,
        )


UNLIMITED = ByteBudget(2**62)
"""For servers without a limit, in tests."""


class Holding:
    """What one call or request has taken of a budget. Closed when it ends, it gives back what is left and takes nothing more."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._held: int | None = 0  # None once closed

    @property
    def limit_bytes(self) -> int:
        """The limit of the whole budget."""
        return self._budget.limit_bytes

    def take(self, count: int) -> None:
        """Takes bytes from the budget. Raises TooManyBytes if they are not left, TooLarge if it would hold more than there are."""
        if (self._held or 0) + count > self._budget.limit_bytes:
            raise TooLarge(
                f"the request needs more memory than is given to requests: {self._budget.limit_bytes} bytes (--max-inflight-bytes)"
            )
        if not self._budget.take(count):
            raise self._budget.refusal()
        self.add(count)

    def add(self, count: int) -> None:
        """Holds bytes that have been taken from the budget; gives them back at once if this is closed."""
        with self._lock:
            if self._held is not None:
                self._held += count
                return
        self._budget.give_back(count)

    def give_back(self, count: int) -> None:
        """Gives back bytes that are held."""
        with self._lock:
            if self._held is None:
                return
            self._held -= count
        self._budget.give_back(count)

    def __enter__(self) -> "Holding":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives back all that is held."""
        with self._lock:
            held, self._held = self._held, None
        self._budget.give_back(held or 0)


def out_of_memory() -> TooManyBytes:
    """The error for a request that memory was lacking for."""
    return TooManyBytes("the server has no memory left for this request; try again", RETRY_SECONDS)
