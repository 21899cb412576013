"""`grpc.health.v1.Health`: overall (the empty name), each gRPC service and each served model by its name, and `liveness`.

`liveness` is SERVING unless only a new process can help: draining or load never fail it, so that Kubernetes kills no busy pod. The
other names are SERVING when requests are accepted, a service when the server as a whole is. Statuses are computed when a client
asks; `changed` makes watchers look again.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakSet

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2 as pb

from service.errors import NotFound, TooManyResults
from service.rpc.call import Method, Receiver, Stream, StreamCall, Unary, UnaryCall
from service.rpc.open_streams import OpenStreams

SERVICE = "grpc.health.v1.Health"
OVERALL = ""
LIVENESS = "liveness"

MAX_NAME_CHARACTERS = 256
"""No service or model has a longer name: of one, a watch keeps so much, for as long as it is open."""

MAX_LISTED = 100
"""The protocol's limit of statuses in the response to `List`."""


def _with_list() -> DescriptorPool:
    """The protocol as gRPC's proposal A90 has it: today's grpcio-health-checking has no `List` yet."""
    if "List" in pb.DESCRIPTOR.services_by_name["Health"].methods_by_name:
        return descriptor_pool.Default()
    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    file.message_type.add(name="HealthListRequest")
    response = file.message_type.add(name="HealthListResponse")
    entry = response.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    optional, repeated = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED
    message, package = FieldDescriptorProto.TYPE_MESSAGE, f".{file.package}"
    entry.field.add(name="key", number=1, label=optional, type=FieldDescriptorProto.TYPE_STRING)
    entry.field.add(name="value", number=2, label=optional, type=message, type_name=f"{package}.HealthCheckResponse")
    statuses = f"{package}.HealthListResponse.StatusesEntry"
    response.field.add(name="statuses", number=1, label=repeated, type=message, type_name=statuses)
    file.service[0].method.add(name="List", input_type=f"{package}.HealthListRequest", output_type=f"{package}.HealthListResponse")
    pool = DescriptorPool()
    pool.Add(file)
    return pool


PACKAGE = "grpc.health.v1."
FILE = pb.DESCRIPTOR.name
DESCRIPTORS = _with_list()
"""Of `FILE` with all methods of the service, for reflection."""

_ListRequest: Any = GetMessageClass(DESCRIPTORS.FindMessageTypeByName("grpc.health.v1.HealthListRequest"))
_ListResponse: Any = GetMessageClass(DESCRIPTORS.FindMessageTypeByName("grpc.health.v1.HealthListResponse"))


class HealthServicer:
    """Answers `Check`, `List` and `Watch` from a function that says which names serve."""

    def __init__(
        self, serving: Callable[[], Mapping[str, bool]], services: Iterable[str] = (), alive: Callable[[], bool] = lambda: True
    ) -> None:
        """The answers of a server.

        Args:
            serving: returns whether each name serves, `OVERALL` among them; it is called from any thread.
            services: names of gRPC services, which serve when `OVERALL` does.
            alive: returns whether `LIVENESS` serves.
        """
        self._alive = alive
        self._serving = serving
        self._services = tuple(services)
        self._lock = threading.Lock()
        self._watchers: WeakSet[_Watcher] = WeakSet()  # the transport holds a watcher while its call is open
        self._streams = OpenStreams()

    def methods(self) -> list[Method]:
        """The methods of this servicer."""
        return [
            Unary(f"/{SERVICE}/Check", pb.HealthCheckRequest, self._check),
            Unary(f"/{SERVICE}/List", _ListRequest, self._list),
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

    def statuses(self) -> dict[str, int]:
        """SERVING or NOT_SERVING by name."""
        serving = self._serving()
        known = {**serving, **dict.fromkeys(self._services, serving[OVERALL]), LIVENESS: self._alive()}
        return {name: pb.HealthCheckResponse.SERVING if up else pb.HealthCheckResponse.NOT_SERVING for name, up in known.items()}

    def status(self, name: str) -> int:
        """SERVING, NOT_SERVING, or SERVICE_UNKNOWN for an unknown name."""
        return self.statuses().get(name, pb.HealthCheckResponse.SERVICE_UNKNOWN)

    def _check(self, request: pb.HealthCheckRequest, call: UnaryCall) -> None:
        status = self.status(request.service)
        if status == pb.HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotFound(f"no service or model named {request.service[:64]!r}")
        call.reply(pb.HealthCheckResponse(status=status).SerializeToString())

    def _list(self, _: Any, call: UnaryCall) -> None:
        statuses = self.statuses()
        if len(statuses) > MAX_LISTED:
            raise TooManyResults(f"there are {len(statuses)} names, and a list holds at most {MAX_LISTED}: check them by name")
        response = _ListResponse()
        for name, status in statuses.items():
            response.statuses[name].status = status
        call.reply(response.SerializeToString())

    def _watch(self, call: StreamCall) -> Receiver:
        watcher = _Watcher(self, call)
        self._streams.add(watcher)
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
        self._name = request.service[: MAX_NAME_CHARACTERS + 1]
        self._servicer._add(self)

    def on_half_close(self) -> None:
        """The client sends no more, but goes on receiving."""

    def finish(self) -> None:
        """See Finishable."""
        self.call.finish()

    def send_if_changed(self) -> None:
        """Sends the status if it differs from the last one sent."""
        with self._lock:
            status = self._servicer.status(self._name)
            if status != self._last_sent:
                self._last_sent = status
                self.call.send(pb.HealthCheckResponse(status=status).SerializeToString())
