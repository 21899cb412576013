"""`grpc.health.v1.Health`: overall (the empty name), each served model by its name, and `liveness`.

`liveness` is SERVING while the process answers: draining or load never fail it, so that Kubernetes does not kill a busy pod. The
other names are SERVING when requests are accepted. Statuses are computed when a client asks; `changed` makes watchers look again.
"""

import threading
from collections.abc import Callable, Mapping
from weakref import WeakSet

from grpc_health.v1 import health_pb2 as pb

from service.errors import NotFound
from service.rpc.call import Method, Receiver, Stream, StreamCall, Unary, UnaryCall
from service.rpc.open_streams import OpenStreams

SERVICE = "grpc.health.v1.Health"
OVERALL = ""
LIVENESS = "liveness"


class HealthServicer:
    """Answers `Check` and `Watch` from a function that says which names serve."""

    def __init__(self, serving: Callable[[], Mapping[str, bool]]) -> None:
        """`serving` returns whether each name serves, `OVERALL` among them; it is called from any thread."""
        self._serving = serving
        self._lock = threading.Lock()
        self._watchers: WeakSet[_Watcher] = WeakSet()  # the transport holds a watcher while its call is open
        self._streams = OpenStreams()

    def methods(self) -> list[Method]:
        """The methods of this servicer."""
        return [
            Unary(f"/{SERVICE}/Check", pb.HealthCheckRequest, self._check),
            Stream(f"/{SERVICE}/Watch", pb.HealthCheckRequest, self._watch, "server_stream"),
        ]

    def changed(self) -> None:
        """Sends watchers the statuses that have changed."""
        with self._lock:
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.send_if_changed()

    def end_watches(self) -> None:
        """Ends every watch, for a server that stops: it would wait for an open one for its whole grace."""
        self._streams.finish_all()

    def status(self, name: str) -> int:
        """SERVING, NOT_SERVING, or SERVICE_UNKNOWN for an unknown name."""
        if name == LIVENESS:
            return pb.HealthCheckResponse.SERVING
        serving = self._serving().get(name)
        if serving is None:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        return pb.HealthCheckResponse.SERVING if serving else pb.HealthCheckResponse.NOT_SERVING

    def _check(self, request: pb.HealthCheckRequest, call: UnaryCall) -> None:
        status = self.status(request.service)
        if status == pb.HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotFound(f"no service or model named {request.service[:64]!r}")
        call.reply(pb.HealthCheckResponse(status=status).SerializeToString())

    def _watch(self, call: StreamCall) -> Receiver:
        watcher = _Watcher(self, call)
        self._streams.add(call)
        call.receive()
        return watcher

    def _add(self, watcher: "_Watcher") -> None:
        with self._lock:
            self._watchers.add(watcher)
        watcher.send_if_changed()


class _Watcher:
    """One open `Watch`."""

    def __init__(self, servicer: HealthServicer, call: StreamCall) -> None:
        self.call = call
        self._servicer = servicer
        self._name = ""
        self._lock = threading.Lock()
        self._last_sent: int | None = None

    def on_message(self, request: pb.HealthCheckRequest) -> None:
        self._name = request.service
        self._servicer._add(self)

    def on_half_close(self) -> None:
        """The client sends no more, but goes on receiving."""

    def send_if_changed(self) -> None:
        """Sends the status if it differs from the last one sent."""
        with self._lock:
            status = self._servicer.status(self._name)
            if status != self._last_sent:
                self._last_sent = status
                self.call.send(pb.HealthCheckResponse(status=status).SerializeToString())
