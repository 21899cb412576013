"""The errors that Convoy raises on purpose. Each class says whose fault it is and what the caller sees.

They are translated at the edges: by `rpc/status.py` to gRPC statuses, `http/responses.py` to HTTP statuses, `cli/__init__.py` to
one line on stderr and exit code 2. The message is written for that reader: what is wrong and what is accepted, without paths of the
server or tracebacks.
"""

import re
from typing import TypeVar

T = TypeVar("T")

_ORT_SOURCE_LOCATION = re.compile(r"/\S+\.(?:cc|h):\d+ .*?\) ")
"""File, line and signature in ONNX Runtime's source, which its messages start with."""


def first_line(error: Exception) -> str:
    """The message of a library's error: its first line, at most 300 characters, without a source location of ONNX Runtime."""
    lines = _ORT_SOURCE_LOCATION.sub("", str(error).strip()).splitlines()
    return lines[0][:300] if lines else type(error).__name__


MAX_REASON_CHARACTERS = 2000


def short_reason(error: Exception) -> str:
    """The message of an error about a model: names and texts from its files, which may be as long as these, are in it cut off."""
    reason = str(error)
    return reason if len(reason) <= MAX_REASON_CHARACTERS else reason[:MAX_REASON_CHARACTERS] + " ..."


def forget_traceback(error: BaseException) -> None:
    """Call it where an error has become a reply, and has been logged if it should be.

    Its traceback holds the frames that it came through, and with them the request. A variable in one of these frames often holds
    the error in turn, as after `error = InvalidRequest(...)` and `raise error`: that circle would stay in memory until the garbage
    collector comes, which is seldom.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None


class ConvoyError(Exception):
    """Base of every error that Convoy raises on purpose."""


class UserError(ConvoyError):
    """The user's fault: a flag, a file or a folder. The command prints the message and exits with code 2."""


class FileUnreadable(UserError):
    """The user's fault: a file that they named cannot be read. The message names it."""


class LoadError(ConvoyError):
    """A model version cannot be served; the previous one still is.

    The reason is in the log and the repository index, and returned to a client that asked for the load. `outcome` is the value of
    that label of `convoy_model_loads_total`.
    """

    outcome = "failed"


class PassingFailure(LoadError):
    """Nobody's fault: memory, processes or open files were short. It is loaded again after a while, also if nothing changes."""


class InvalidModel(LoadError):
    """The file's fault: not an ONNX model, an invalid contract, or a graph that differs from its contract."""

    outcome = "invalid"


class FilesChanged(LoadError):
    """Nobody's fault: the files of a version are being written. It is loaded once they no longer change."""


class GoldenMismatch(LoadError):
    """The file's or the provider's fault: on this provider the model does not reproduce its golden samples."""

    outcome = "golden_mismatch"


class RequestError(ConvoyError):
    """A request fails; its client gets the message. `reason` is the value of that label of `convoy_rejections_total`."""

    reason = "invalid"


class InvalidRequest(RequestError):
    """The client's fault. `field` is the path of the invalid field in the request, such as `items[3].encoded`."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class NotFound(RequestError):
    """The client's fault: no such model, version, alias or shared memory region."""


class Unimplemented(RequestError):
    """The client's fault: it asked for something that this server does not do, or was started without."""


class Unauthenticated(RequestError):
    """The client's fault: it has no credentials, or none that are known. The message never has them.

    `cause` is the label `reason` of `convoy_auth_failures_total`.
    """

    reason = "forbidden"

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


class PermissionDenied(RequestError):
    """The client's fault: it is known, and does not have the right that the request needs. `cause` as above."""

    reason = "forbidden"
    cause = "forbidden"


Refused = Unauthenticated | PermissionDenied


class TooManyResults(RequestError):
    """Nobody's fault: the answer would be larger than its protocol allows."""


class SharedMemoryFull(RequestError):
    """The machine's fault: /dev/shm has no room for an output that the client wants there."""

    reason = "failed"


class QueueFull(RequestError):
    """The server's fault: it is overloaded. The client should retry after `retry_after_seconds`."""

    reason = "queue_full"

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TooManyBytes(QueueFull):
    """The server's fault: the requests in flight hold as much memory as is meant for them."""


class TooLarge(RequestError):
    """The client's fault: the request needs more memory than this server ever gives to one. To repeat it is of no use."""


class QuotaExceeded(QueueFull):
    """The client's fault: it sends more than its group may. It should retry after `retry_after_seconds`."""

    reason = "quota"


class Unavailable(RequestError):
    """Nobody's fault: the server loads or drains. The client should try another server, or retry after `retry_after_seconds`."""

    reason = "draining"

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceeded(RequestError):
    """Nobody's fault: the answer would come after the request's deadline. The request is dropped as soon as that is certain."""

    reason = "deadline"


class Cancelled(RequestError):
    """The client's choice: it cancelled the call, or its connection closed. Nobody sees the message."""

    reason = "cancelled"


class ModelFailed(RequestError):
    """The server's fault: the model raised an error. The cause is in the server's log, never in the message."""

    reason = "failed"


class ByErrorClass(dict[type[BaseException], T | None]):
    """Values by error class. A class that is not listed has the value of its nearest base class, or None."""

    def __missing__(self, kind: type[BaseException]) -> T | None:
        # A base that was looked up in vain is here too, with None: it must not hide a listed one behind it.
        value = self[kind] = next((found for base in kind.__mro__[1:] if (found := self.get(base)) is not None), None)
        return value
