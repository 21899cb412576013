"""`GetModel` and `ListModels` of `convoy.v1.Classifier`: metadata and states of the models."""

import math

from service.engine.explain import method_of
from service.engine.repository import Repository
from service.engine.served_version import ServedVersion
from service.model.contract import EMBEDDING_NAME
from service.model.inference import Model
from service.model.scores import described
from service.model.signature import TensorSpec
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.policy import Policy
from service.rpc.call import Method, Unary, UnaryCall
from service.rpc.classify import SERVICE
from service.rpc.explain import METHODS

_STATES = {
    "READY": pb.ModelStatus.STATE_READY,
    "LOADING": pb.ModelStatus.STATE_LOADING,
    "UNAVAILABLE": pb.ModelStatus.STATE_UNAVAILABLE,
    "IDLE": pb.ModelStatus.STATE_IDLE,
}


class ModelInfoServicer:
    """Answers `GetModel` and `ListModels` from a repository."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def methods(self) -> list[Method]:
        """The methods of this servicer."""
        return [
            Unary(f"/{SERVICE}/GetModel", pb.GetModelRequest, self._get),
            Unary(f"/{SERVICE}/ListModels", pb.ListModelsRequest, self._list),
        ]

    def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """The metadata of a version. Raises RequestError if it is not served."""
        served = self._repository.acquire(request.model, request.version)
        try:
            return self._model_info(served)
        finally:
            self._repository.release(served)

    def list_models(self) -> pb.ListModelsResponse:
        """The state of every version."""
        return pb.ListModelsResponse(
            models=[
                pb.ModelStatus(
                    model=entry.name,
                    version=entry.number,
                    state=_STATES[entry.state],
                    reason=entry.reason,
                    aliases=[alias for alias, version in routing.aliases.items() if version == entry.version],
                    share=routing.shares().get(entry.version, 0.0) if entry.state == "READY" else 0.0,
                )
                for entry in self._repository.index()
                for routing in [self._repository.routing(entry.name)]
            ]
        )

    def _get(self, request: pb.GetModelRequest, call: UnaryCall) -> None:
        call.reply(self.get_model(request).SerializeToString())

    def _list(self, _: pb.ListModelsRequest, call: UnaryCall) -> None:
        call.reply(self.list_models().SerializeToString())

    def _model_info(self, served: ServedVersion) -> pb.GetModelResponse:
        model = served.model
        return pb.GetModelResponse(
            model=served.name,
            version=str(served.version),
            versions=[str(each.version) for each in self._repository.served.get(served.name, ())],
            aliases={alias: str(version) for alias, version in self._repository.aliases(served.name).items()},
            input=_tensor(model.input),
            outputs=[_tensor(spec) for spec in model.outputs],
            labels=model.labels,
            contract=_contract(model) if model.has_contract else None,
            provider=model.provider,
            precision=model.precision,
            digest=model.digest,
            signer=model.signer,
            preferred_batch_items=preferred_batch_items(served.batcher.measured(), served.batcher.max_batch_items),
            limits=_limits(served.policy),
            heads=_heads(model),
            embedding_size=model.hidden[EMBEDDING_NAME].shape[0] if EMBEDDING_NAME in model.hidden else 0,
            explanation=METHODS[method_of(served)],
            shares={str(version): share for version, share in self._repository.routing(served.name).shares().items()},
        )


def preferred_batch_items(measured: dict[int, float], max_batch_items: int) -> list[int]:
    """The measured batch sizes up to `max_batch_items` that take less time per item than any smaller one.

    `measured` has the seconds of a batch by its items.
    """
    preferred = []
    least = math.inf
    for items, seconds in sorted(measured.items()):
        if items <= max_batch_items and seconds / items < least:
            least = seconds / items
            preferred.append(items)
    return preferred


def _tensor(spec: TensorSpec) -> pb.TensorSpec:
    return pb.TensorSpec(name=spec.name, dtype=str(spec.dtype), shape=spec.shape)


def _contract(model: Model) -> pb.Contract:
    contract = model.contract
    mode, measured = contract.input.resizing.mode, contract.measured
    info = pb.Contract(
        resize=contract.input.filter,
        fit="crop" if mode == "cover" else mode,
        head=contract.head,
        data=measured.data,
        accuracy=measured.accuracy,
        accuracy_interval=measured.accuracy_interval,
        calibration_error=measured.calibration_error,
        software_versions=measured.versions,
        fitting=contract.input.fitting,
    )
    if training := contract.training:
        info.network, info.epochs, info.seed = training.network, training.epochs, training.seed
        info.temperature, info.commit = training.temperature, training.commit or ""
    if origin := contract.origin:
        info.origin.MergeFrom(pb.Origin(**{name: getattr(origin, name) for name in pb.Origin.DESCRIPTOR.fields_by_name}))
    return info


def _heads(model: Model) -> list[pb.Head]:
    if model.score_kind is None:
        return [pb.Head(**head.model_dump(), scores="probabilities") for head in model.heads]
    output = model.outputs[0].name
    activation, scores = described(model.score_kind)
    return [pb.Head(name=output, output=output, labels=model.labels, activation=activation, scores=scores)]


def _limits(policy: Policy) -> pb.Limits:
    return pb.Limits(
        max_request_items=policy.max_request_items,
        max_queue_items=policy.max_queue_items,
        max_image_pixels=policy.max_image_pixels,
        priority_levels=policy.priority_levels,
        default_priority=policy.default_priority,
        default_timeout_seconds=policy.default_timeout_seconds,
    )
