"""`grpc.health.v1.Health` by the names of gRPC services, and its `List`."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from service.errors import UserError
from service.model.repository_layout import check_model_name, model_names
from service.rpc import health
from service.rpc.aio_server import AioServer
from service.rpc.completion_queue import CompletionQueueServer
from service.rpc.health import HealthServicer
from service.rpc.transport import Options
from tests.conftest import Serve, put
from tests.integration.transport_service import LIMIT, RecordingObserver

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = {
    "convoy.v1.Classifier", "inference.GRPCInferenceService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}  # fmt: skip


def checked(channel: grpc.Channel, name: str) -> tuple[int, int]:
    """What `Check` says of a name, and what `Watch` says first."""
    health: Any = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=name)
    watch = health.Watch(request, timeout=20)
    first = next(watch).status
    watch.cancel()
    return health.Check(request, timeout=20).status, first


def listed(channel: grpc.Channel) -> dict[str, int]:
    """What `List` says, with the messages that reflection describes."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    method = pool.FindServiceByName("grpc.health.v1.Health").FindMethodByName("List")
    request, response = GetMessageClass(method.input_type)(), GetMessageClass(method.output_type)
    call: Any = channel.unary_unary(f"/{method.containing_service.full_name}/{method.name}", None, response.FromString)
    return {name: each.status for name, each in call(request.SerializeToString(), timeout=20).statuses.items()}


def test_services_are_healthy_when_the_server_is(tmp_path: Path, serve: Serve, model_file: Path) -> None:
    (tmp_path / "models").mkdir()
    server = serve(tmp_path / "models")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        assert {name: checked(channel, name) for name in SERVICES} == dict.fromkeys(SERVICES, (NOT_SERVING, NOT_SERVING))
        assert listed(channel) == {**dict.fromkeys({"", *SERVICES}, NOT_SERVING), "liveness": SERVING}
        put(model_file, tmp_path / "models", "digits", 1)
        watch: Any = health_pb2_grpc.HealthStub(channel)
        for status in watch.Watch(health_pb2.HealthCheckRequest(service="convoy.v1.Classifier"), timeout=20):
            if status.status == SERVING:
                break
        assert {name: checked(channel, name) for name in SERVICES} == dict.fromkeys(SERVICES, (SERVING, SERVING))
        assert listed(channel) == dict.fromkeys({"", "liveness", "digits", *SERVICES}, SERVING)


def test_a_service_that_is_not_offered_is_unknown(repository: Path, serve: Serve) -> None:
    name = "grpc.channelz.v1.Channelz"
    with grpc.insecure_channel(f"127.0.0.1:{serve(repository).grpc_port}") as channel, pytest.raises(grpc.RpcError) as caught:
        checked(channel, name)
    refused: Any = caught.value
    assert refused.code() is grpc.StatusCode.NOT_FOUND
    with grpc.insecure_channel(f"127.0.0.1:{serve(repository, channelz=True).grpc_port}") as channel:
        assert checked(channel, name) == (SERVING, SERVING)
        assert listed(channel).keys() == {"", "liveness", "digits", name, *SERVICES}


def test_a_release_of_the_library_that_has_list_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its messages must not be declared twice, which protobuf refuses when the module is imported."""
    monkeypatch.setattr(health, "pb", SimpleNamespace(DESCRIPTOR=health.DESCRIPTORS.FindFileByName(health.FILE)))
    assert health._with_list() is descriptor_pool.Default()


def test_no_model_has_the_name_of_a_service(tmp_path: Path) -> None:
    for name in (*SERVICES, "grpc.channelz.v1.Channelz"):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match="is taken: health checks use it for the server itself"):
            check_model_name(name)
    assert model_names(tmp_path) == []


@pytest.mark.parametrize("kind", [AioServer, CompletionQueueServer])
@pytest.mark.parametrize(("models", "code"), [(98, "OK"), (99, "RESOURCE_EXHAUSTED")])
def test_a_list_holds_a_hundred_names(kind: type[AioServer] | type[CompletionQueueServer], models: int, code: str) -> None:
    health = HealthServicer(lambda: {"": True, **{f"m{number}": number % 2 == 0 for number in range(models)}})
    transport = kind(Options(["127.0.0.1"], 0, LIMIT, health.methods(), RecordingObserver(), lambda: math.inf))
    transport.start()
    with grpc.insecure_channel(f"127.0.0.1:{transport.port}") as channel:
        call: Any = channel.unary_unary("/grpc.health.v1.Health/List")
        answer = call.future(b"", timeout=20)
        assert answer.code().name == code
        assert code == "OK" or answer.details() == "there are 101 names, and a list holds at most 100: check them by name"
    transport.stop(0)
