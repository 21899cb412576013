"""Lets calls in that `--auth` allows, as soon as their headers are here: their messages are not read before.

A unary call may still be refused for the model that its message names, by `dispatch.py`; of a stream, each message. A stream ends
when its client is no longer known.
"""

import threading
from collections.abc import Mapping, Sequence

from service.access.authenticator import Authenticator
from service.access.grant import Grant
from service.access.rights import need_of
from service.errors import Refused, Unauthenticated
from service.rpc.call import Call, StreamCall

AUTHORIZATION = "authorization"

FEW_STREAMS = 64
"""Streams that have ended are let go of when there are twice as many as were open, and so many more."""


class Gate:
    """Asks an Authenticator about every call."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._lock = threading.Lock()
        self._streams: list[StreamCall] = []  # the open ones, and some that have ended
        self._most_streams = FEW_STREAMS
        authenticator.access.after_each_look(self._renew_streams)

    def admits(self, call: Call) -> bool:
        """Whether the call may go on; it has failed if not. On the transport's thread."""
        right = need_of(call.method.path).right
        if right == "open":
            return True
        try:
            call.grant = grant = self._grant(call)
            call.principal = grant.principal
            grant.require(right)
        except Exception as error:  # noqa: BLE001 - any error is the outcome of the call, and not let in
            self._fail(call, error)
            return False
        if isinstance(call, StreamCall):
            with self._lock:
                if len(self._streams) >= self._most_streams:
                    self._streams = [each for each in self._streams if not each.ended]
                    self._most_streams = 2 * len(self._streams) + FEW_STREAMS
                self._streams.append(call)
        return True

    def _grant(self, call: Call) -> Grant:
        authorization = None
        for key, value in call.metadata:
            if key == AUTHORIZATION:
                if authorization is not None:
                    raise Unauthenticated("the call has two authorizations", "malformed")
                authorization = str(value)
        return self._authenticator.grant(authorization, call.certificate_names)

    def _renew_streams(self) -> None:
        """Ends the streams of clients that are not known any more; others have from now on the rights of the present rules."""
        with self._lock:
            streams = self._streams = [each for each in self._streams if not each.ended]
        for call in streams:
            try:
                grant = self._grant(call)
                grant.require(need_of(call.method.path).right)
                call.grant, call.principal = grant, grant.principal
            except Exception as error:  # noqa: BLE001 - it ends this stream, and the others are still looked at
                self._fail(call, error)

    def _fail(self, call: Call, error: Exception) -> None:
        if call.grant is None and isinstance(error, Refused):
            self._authenticator.refused(error, None, call.peer(), call.method.path)
        call.fail(error)


def certificate_names(context: Mapping[str, Sequence[bytes]]) -> list[str]:
    """The names in a certificate, from C core's properties of a connection."""
    found = []
    for key in ("x509_common_name", "x509_subject_alternative_name"):
        found += [value.decode(errors="replace") for value in context.get(key, ())]
    return found
