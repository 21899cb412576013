"""`inference.GRPCInferenceService` without inference: health, metadata, statistics, model control, shared memory.

Queries are answered on the transport's thread, from memory. Changes, which may take as long as loading a model, run in a thread
pool, and as many at a time as there are places for them.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from service.access import audit
from service.control import (
    MAX_CALLS,
    NO_CUDA,
    NO_LOG_SETTINGS,
    NO_TRACE_SETTINGS,
    Control,
    ControlPlaces,
    check_load,
    check_repository,
    check_unload,
)
from service.errors import Unavailable, Unimplemented
from service.open_inference.metadata import ServerMetadata
from service.open_inference.shared_memory import SharedMemory
from service.pb.inference import open_inference_pb2 as pb
from service.process.thread_pool import ThreadPool
from service.rpc.call import Method, Unary, UnaryCall
from service.rpc.open_inference import SERVICE

_WHAT = {
    "RepositoryModelLoad": "load",
    "RepositoryModelUnload": "unload",
    "SystemSharedMemoryRegister": "register",
    "SystemSharedMemoryUnregister": "unregister",
}
"""What the audit log calls the changes, as for HTTP."""


class AdminServicer:
    """Answers queries with a ServerMetadata and makes changes through a Control."""

    def __init__(self, metadata: ServerMetadata, control: Control, memory: SharedMemory, places: ControlPlaces) -> None:
        self._metadata = metadata
        self._control = control
        self._memory = memory
        self._places = places
        self._changes = ThreadPool(MAX_CALLS, "control")

    def close(self) -> None:
        """Ends the threads, once what they wait for is done."""
        self._changes.close(timeout=0)

    def methods(self) -> list[Method]:
        """The methods of this servicer."""
        queries: dict[str, tuple[type[Message], Callable[[Any], Message]]] = {
            "ServerLive": (pb.ServerLiveRequest, lambda _: pb.ServerLiveResponse(live=self._metadata.live())),
            "ServerReady": (pb.ServerReadyRequest, lambda _: pb.ServerReadyResponse(ready=self._metadata.ready())),
            "ModelReady": (pb.ModelReadyRequest, self._model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": (pb.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": (pb.ModelConfigRequest, self._model_config),
            "ModelStatistics": (pb.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": (pb.RepositoryIndexRequest, self._index),
            "SystemSharedMemoryStatus": (pb.SystemSharedMemoryStatusRequest, self._memory_status),
            "CudaSharedMemoryStatus": (pb.CudaSharedMemoryStatusRequest, _unimplemented(NO_CUDA)),
            "CudaSharedMemoryRegister": (pb.CudaSharedMemoryRegisterRequest, _unimplemented(NO_CUDA)),
            "CudaSharedMemoryUnregister": (pb.CudaSharedMemoryUnregisterRequest, _unimplemented(NO_CUDA)),
            "TraceSetting": (pb.TraceSettingRequest, _unimplemented(NO_TRACE_SETTINGS)),
            "LogSettings": (pb.LogSettingsRequest, _unimplemented(NO_LOG_SETTINGS)),
        }
        changes: dict[str, tuple[type[Message], Callable[[Any, float | None], Message]]] = {
            "RepositoryModelLoad": (pb.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest, self._unload),
            "SystemSharedMemoryRegister": (pb.SystemSharedMemoryRegisterRequest, self._register),
            "SystemSharedMemoryUnregister": (pb.SystemSharedMemoryUnregisterRequest, self._unregister),
        }
        return [
            *(Unary(f"/{SERVICE}/{name}", request, _on_transport(answer)) for name, (request, answer) in queries.items()),
            *(
                Unary(f"/{SERVICE}/{name}", request, self._in_pool(_WHAT[name], change))
                for name, (request, change) in changes.items()
            ),
        ]

    def _in_pool(self, what: str, change: Callable[[Any, float | None], Message]) -> Callable[[Any, UnaryCall], None]:
        def make(request: Any, call: UnaryCall) -> None:
            try:
                seconds = None if math.isinf(call.deadline) else call.deadline - time.monotonic()
                with audit.recorded(what, who=call.principal, peer=call.peer(), **_subject(request)):
                    reply = change(request, seconds).SerializeToString()
            except Exception as error:  # noqa: BLE001 - any error fails this call alone
                call.fail(error)
            else:
                call.reply(reply)
            finally:
                self._places.give_back()

        def handle(request: Any, call: UnaryCall) -> None:
            self._places.take()
            try:
                self._changes.submit(partial(make, request, call))
            except Unavailable:
                self._places.give_back()
                raise

        return handle

    def _model_ready(self, request: pb.ModelReadyRequest) -> Message:
        return pb.ModelReadyResponse(ready=self._metadata.model_ready(request.name, request.version))

    def _server_metadata(self, _: pb.ServerMetadataRequest) -> Message:
        return pb.ServerMetadataResponse(**self._metadata.server_metadata())

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> Message:
        return pb.ModelMetadataResponse(**self._metadata.model_metadata(request.name, request.version))

    def _model_config(self, request: pb.ModelConfigRequest) -> Message:
        return pb.ModelConfigResponse(
            config=ParseDict(self._metadata.model_config(request.name, request.version), pb.ModelConfig())
        )

    def _model_statistics(self, request: pb.ModelStatisticsRequest) -> Message:
        return ParseDict(self._metadata.model_statistics(request.name, request.version), pb.ModelStatisticsResponse())

    def _index(self, request: pb.RepositoryIndexRequest) -> Message:
        check_repository(request.repository_name)
        return pb.RepositoryIndexResponse(models=self._metadata.repository_index(ready_only=request.ready))

    def _load(self, request: pb.RepositoryModelLoadRequest, seconds: float | None) -> Message:
        check_load(request.repository_name, request.parameters)
        self._control.load(request.model_name, seconds)
        return pb.RepositoryModelLoadResponse()

    def _unload(self, request: pb.RepositoryModelUnloadRequest, seconds: float | None) -> Message:
        check_unload(request.repository_name, request.parameters)
        self._control.unload(request.model_name, seconds)
        return pb.RepositoryModelUnloadResponse()

    def _memory_status(self, request: pb.SystemSharedMemoryStatusRequest) -> Message:
        regions = {
            name: pb.SystemSharedMemoryStatusResponse.RegionStatus(
                name=name, key=region.key, offset=region.offset, byte_size=region.byte_size
            )
            for name, region in self._memory.regions(request.name).items()
        }
        return pb.SystemSharedMemoryStatusResponse(regions=regions)

    def _register(self, request: pb.SystemSharedMemoryRegisterRequest, _: float | None) -> Message:
        self._control.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    def _unregister(self, request: pb.SystemSharedMemoryUnregisterRequest, _: float | None) -> Message:
        self._control.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()


def _subject(request: Any) -> dict[str, str]:
    """What a request changes, for the audit log."""
    if hasattr(request, "model_name"):
        return {"model": request.model_name}
    return {"region": request.name} | ({"key": request.key} if hasattr(request, "key") else {})


def _on_transport(answer: Callable[[Any], Message]) -> Callable[[Any, UnaryCall], None]:
    def handle(request: Any, call: UnaryCall) -> None:
        call.reply(answer(request).SerializeToString())

    return handle


def _unimplemented(reason: str) -> Callable[[Any], Message]:
    def refuse(_: Any) -> Message:
        raise Unimplemented(reason)

    return refuse
