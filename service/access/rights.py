"""The right that each gRPC method and each HTTP route needs. Whoever adds one adds it here: without, it cannot be called.

What is open needs no credentials: probes have none, and the page asks for a token by itself.
"""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Literal, NamedTuple

Right = Literal["open", "infer", "describe", "read", "control", "shared-memory", "metrics", "admin"]
"""What a method or route needs.

`infer` is given by model. `describe` is had by who may read, and for a model by who may infer with it: clients ask for its input
before they send one. `read` is all models, their states and statistics. `admin` is all rights at once, for all models.
"""

GRANTABLE = ("read", "control", "shared-memory", "metrics", "admin")
"""The rights that a group may be given, beside `infer`."""

ADMIN: Right = "admin"


class Need(NamedTuple):
    """A right and, where it is for one model, the field of the message that names it."""

    right: Right
    model_field: str = ""

    def model(self, message: Any) -> str:
        """The model that a message names."""
        name: str = attrgetter(self.model_field)(message)
        return name


_OIP = "/inference.GRPCInferenceService"
_CLASSIFIER = "/convoy.v1.Classifier"
_CHANNELZ = "/grpc.channelz.v1.Channelz"

GRPC: Mapping[str, Need] = {
    f"{_CLASSIFIER}/Classify": Need("infer", "model"),
    f"{_CLASSIFIER}/ClassifyStream": Need("infer", "request.model"),
    f"{_CLASSIFIER}/Explain": Need("infer", "model"),
    f"{_CLASSIFIER}/GetModel": Need("describe", "model"),
    f"{_CLASSIFIER}/ListModels": Need("read"),
    f"{_OIP}/ModelInfer": Need("infer", "model_name"),
    f"{_OIP}/ModelStreamInfer": Need("infer", "model_name"),
    f"{_OIP}/ServerLive": Need("open"),
    f"{_OIP}/ServerReady": Need("open"),
    f"{_OIP}/ServerMetadata": Need("describe"),
    f"{_OIP}/ModelReady": Need("describe", "name"),
    f"{_OIP}/ModelMetadata": Need("describe", "name"),
    f"{_OIP}/ModelConfig": Need("describe", "name"),
    f"{_OIP}/ModelStatistics": Need("read"),
    f"{_OIP}/RepositoryIndex": Need("read"),
    f"{_OIP}/RepositoryModelLoad": Need("control"),
    f"{_OIP}/RepositoryModelUnload": Need("control"),
    **{
        f"{_OIP}/{kind}SharedMemory{name}": Need("shared-memory")
        for kind in ("System", "Cuda")
        for name in ("Status", "Register", "Unregister")
    },
    f"{_OIP}/TraceSetting": Need("admin"),
    f"{_OIP}/LogSettings": Need("admin"),
    **{f"/grpc.health.v1.Health/{name}": Need("open") for name in ("Check", "Watch")},
    "/grpc.health.v1.Health/List": Need("read"),  # it names all models
    **{f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo": Need("read") for version in ("v1", "v1alpha")},
    **{
        f"{_CHANNELZ}/{name}": Need("admin")
        for name in (
            "GetTopChannels", "GetServers", "GetServer", "GetServerSockets", "GetChannel", "GetSubchannel", "GetSocket",
        )
    },
}  # fmt: skip
"""By path. The model of a unary call is in its message, that of a stream in each of its messages."""


def need_of(path: str) -> Need:
    """What a gRPC method needs; `admin` if it is not in the table."""
    return GRPC.get(path, _UNKNOWN)


_UNKNOWN = Need("admin")

_MODEL = "/v2/models/<model>"
_VERSION = f"{_MODEL}/versions/<version>"
_REGION = "/v2/systemsharedmemory/region/<region>"

HTTP: Mapping[str, Right] = {
    "/livez": "open",
    "/readyz": "open",
    "/metrics": "metrics",
    "/": "open",
    "/page/<name>": "open",
    "/page/models": "read",
    "/page/classify/<model>": "infer",
    "/page/classify/<model>/<version>": "infer",
    "/page/explain/<model>": "infer",
    "/page/explain/<model>/<version>": "infer",
    "/v2": "describe",
    "/v2/health/live": "open",
    "/v2/health/ready": "open",
    "/v2/models": "read",
    "/v2/models/stats": "read",
    **{f"{path}{name}": "describe" for path in (_MODEL, _VERSION) for name in ("", "/ready", "/config")},
    **dict.fromkeys((f"{_MODEL}/stats", f"{_VERSION}/stats"), "read"),
    **dict.fromkeys((f"{_MODEL}/infer", f"{_VERSION}/infer"), "infer"),
    **dict.fromkeys((f"{_MODEL}/trace/setting", f"{_VERSION}/trace/setting"), "admin"),
    "/v2/repository/index": "read",
    "/v2/repository/models/<model>/load": "control",
    "/v2/repository/models/<model>/unload": "control",
    "/v2/systemsharedmemory/status": "shared-memory",
    f"{_REGION}/status": "shared-memory",
    f"{_REGION}/register": "shared-memory",
    f"{_REGION}/unregister": "shared-memory",
    "/v2/systemsharedmemory/unregister": "shared-memory",
    "/v2/cudasharedmemory/<path:rest>": "shared-memory",
    "/v2/trace/setting": "admin",
    "/v2/logging": "admin",
}
"""By werkzeug's rule. The model is the rule's argument `model`."""
