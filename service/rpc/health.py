"""`grpc.health.v1.Health`: overall (the empty name), each served model by its name, and `liveness`.

`liveness` says SERVING for as long as the process answers: draining or load never fail it, so that Kubernetes does not kill a
pod for being busy. The rest says SERVING when it can be sent requests. Statuses are asked for when a client asks, and `changed`
tells watchers to look again.
"""

import threading
from collections.abc import Callable, Mapping
from weakref import WeakSet

from grpc_health.v1 import health_pb2 as pb

from service.errors import NotFound
from service.rpc.call import Method, OpenStreams, Receiver, Stream, StreamCall, Unary, UnaryCall

SERVICE = "grpc.health.v1.Health"
OVERALL = ""
LIVENESS = "liveness"


class HealthServicer:
    """Answers `Check` and `Watch` from a function that gives whether each name serves."""

    def __init__(self, serving: Callable[[], Mapping[str, bool]]) -> None:
        """`serving` gives True or False by name, `OVERALL` among them; it is called from any thread."""
        self._serving = serving
        self._lock = threading.Lock()
        self._watchers: WeakSet[_Watcher] = WeakSet()  # a transport holds a watcher for as long as its call is open
        self._streams = OpenStreams()

    def methods(self) -> list[Method]:
        """What this servicer offers."""
        return [
            Unary(f"/{SERVICE}/Check", pb.HealthCheckRequest, self._check),
            Stream(f"/{SERVICE}/Watch", pb.HealthCheckRequest, self._watch, "server_stream"),
        ]

    def changed(self) -> None:
        """Sends watchers the statuses that have changed."""
        with self._lock:
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.look()

    def end_watches(self) -> None:
        """Ends every watch, for a server that stops: an open one would hold the stop for its whole grace."""
        self._streams.finish_all()

    def status(self, name: str) -> int:
        """SERVING, NOT_SERVING, or SERVICE_UNKNOWN for a name that nobody knows."""
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

    def _join(self, watcher: "_Watcher") -> None:
        with self._lock:
            self._watchers.add(watcher)
        watcher.look()


class _Watcher:
    """One open `Watch`."""

    def __init__(self, servicer: HealthServicer, call: StreamCall) -> None:
        self.call = call
        self._servicer = servicer
        self._name = ""
        self._lock = threading.Lock()
        self._last: int | None = None

    def message(self, request: pb.HealthCheckRequest) -> None:
        self._name = request.service
        self._servicer._join(self)

    def half_closed(self) -> None:
        """The client has said all it has to say; it goes on listening."""

    def look(self) -> None:
        """Sends the status if it is not the one sent last."""
        with self._lock:
            status = self._servicer.status(self._name)
            if status != self._last:
                self._last = status
                self.call.send(pb.HealthCheckResponse(status=status).SerializeToString())
