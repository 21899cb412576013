"""The errors that Convoy raises on purpose, by whose fault they are.

Each edge translates this tree once: `rpc/status.py` to gRPC statuses, `cli.py` to a line on stderr and exit code 2. Messages
are written for the reader at that edge: they say what is wrong and what is accepted, and hold no path of the server's, no trace.
"""

import re
from typing import TypeVar

T = TypeVar("T")

_FROM = re.compile(r"/\S+\.(?:cc|h):\d+ .*?\) ")
"""The place in ONNX Runtime's source, and the whole signature there, that come before what its errors say."""


def first_line(error: Exception) -> str:
    """What an error of a library says is wrong, in a line of at most 300 characters."""
    lines = _FROM.sub("", str(error).strip()).splitlines()
    return lines[0][:300] if lines else type(error).__name__


class ConvoyError(Exception):
    """Base of every error that Convoy raises on purpose."""


class UserError(ConvoyError):
    """The operator's fault: a flag, a file or a folder. The command line prints the message and exits with code 2."""


class FileUnreadable(UserError):
    """A file that the user named cannot be read; the message says which."""


class LoadError(ConvoyError):
    """A model file cannot be served. `outcome` is its value of the label `outcome` in `convoy_model_loads_total`."""

    outcome = "failed"


class InvalidModel(LoadError):
    """The file is no ONNX model, or has no valid contract, or its graph is not as the contract says."""

    outcome = "invalid"


class GoldenMismatch(LoadError):
    """The model does not reproduce the golden samples of its own contract on the provider in use."""

    outcome = "golden_mismatch"


class RequestError(ConvoyError):
    """A request that is not answered. `reason` is its value of the label `reason` in `convoy_rejections_total`."""

    reason = "invalid"


class InvalidRequest(RequestError):
    """The client's fault: `field` is the path of the offending field in the request, such as `items[3].encoded`."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class NotFound(RequestError):
    """The client asked for a model, version, alias or region of shared memory that is not there."""


class Unimplemented(RequestError):
    """The client asked for something that this server does not do."""


class QueueFull(RequestError):
    """The server's fault: more work has come than it can hold. Worth a retry after `retry_after_seconds`."""

    reason = "queue_full"

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(RequestError):
    """The server is loading or draining. Worth a retry, best with another server, after `retry_after_seconds`."""

    reason = "draining"

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceeded(RequestError):
    """Nobody's fault: the answer would have come too late."""

    reason = "deadline"


class Cancelled(RequestError):
    """The client's will: it cancelled the call, or its connection broke."""

    reason = "cancelled"


class ModelFailed(RequestError):
    """The server's fault: the model raised. The cause is in the server's log, never in the message."""

    reason = "failed"


class ByErrorClass(dict[type[BaseException], T | None]):
    """Values by error class. A class without one has that of its nearest base class, and None if none of its bases has any."""

    def __missing__(self, kind: type[BaseException]) -> T | None:
        value = self[kind] = next((self[base] for base in kind.__mro__[1:] if base in self), None)
        return value
