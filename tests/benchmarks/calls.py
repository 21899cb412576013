"""Calls from handler to reply, without gRPC: what `service.py` beside this measures.

A call is what the fast transport makes of a unary call, less C core: an object of `UnaryCall`, the message's bytes taken from the
budget, `dispatch.handle_unary`, which parses them and calls the servicer's real handler; the real repository, queue, batcher and
ONNX Runtime session; the serialised reply, which the call takes in place of C core. A round of calls is handled as the transport
does: all calls come, all messages are handled, then one batch of the model runs and replies.
"""

import gc
import io
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import CollectorRegistry

from service.engine.classifier import Classifier
from service.engine.repository import Repository
from service.model.model_files import read_model
from service.model.session import open_session
from service.observability.metrics import Metrics
from service.open_inference.shared_memory import SharedMemory
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.requests.byte_budget import ByteBudget
from service.requests.principal import Peers
from service.rpc.call import NEVER, RpcMethodObserver, Unary, UnaryCall
from service.rpc.classify import ClassifyServicer
from service.rpc.dispatch import handle_unary
from service.rpc.open_inference import InferServicer
from service.rpc.status import Metadata, Status
from tests.benchmarks.instructions import SHAPES

_METADATA: Metadata = (("user-agent", "grpc-python/1.85.1 grpc-c/54.0.0 (linux; chttp2)"),)
_PIXELS: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (28, 28, 1), np.uint8)


class _Call(UnaryCall):
    """Takes the reply in place of the transport."""

    __slots__ = ("replies",)
    replies: list[bytes]

    def _send(self, payload: bytes | None, status: Status) -> None:
        if payload is None:
            raise AssertionError(f"a call failed: {status}")
        self.replies.append(payload)

    def peer(self) -> str:
        return "ipv4:127.0.0.1:40404"

    def certificate_names(self) -> Sequence[str]:
        return ()


class _Shape(NamedTuple):
    method: Unary
    observer: RpcMethodObserver
    payload: bytes
    parse: Callable[[bytes], Any]
    check: Callable[[Any], bool]


class Calls:
    """A served model, and the four shapes of calls to it. Close it in the end."""

    def __init__(self, model: Path) -> None:
        """`model` is `REPOSITORY/digits/1/model.onnx`, of uint8[28,28,1] and ten labels."""
        self._registry = CollectorRegistry()
        metrics = Metrics(self._registry)
        # One thread of ONNX Runtime: what is measured is the CPU time of the thread that serves.
        self._repository = Repository(model.parents[2], "cpu", metrics, cpus=1, load_seconds=threading.TIMEOUT_MAX)
        reasons = self._repository.load_once(["digits"])
        if reasons:
            raise AssertionError(reasons)
        self._classifier = Classifier(self._repository, metrics, 1)
        self._budget = ByteBudget(1 << 30)
        self._principal = Peers().principal(b"ipv4:127.0.0.1:40404")
        classify = ClassifyServicer(self._classifier).methods()[0]
        infer = InferServicer(self._classifier, SharedMemory()).methods()[0]
        assert isinstance(classify, Unary)
        assert isinstance(infer, Unary)
        self._shapes = {
            name: _Shape(
                method, metrics.rpc_method(method.kind, method.service, method.name), message.SerializeToString(), parse, check
            )
            for name, method, message, parse, check in (
                (SHAPES[0], classify, _classify(pixels=_PIXELS.tobytes()), pb.ClassifyResponse.FromString, _is_classified),
                (SHAPES[1], classify, _classify(encoded=_png()), pb.ClassifyResponse.FromString, _is_classified),
                (SHAPES[2], infer, _infer(raw=True), oip.ModelInferResponse.FromString, _is_inferred),
                (SHAPES[3], infer, _infer(raw=False), oip.ModelInferResponse.FromString, _is_inferred),
            )
        }
        session = open_session(read_model(model), "cpu", 1)
        self._run = session.run
        self._outputs = [output.name for output in session.get_outputs()]
        gc.collect()  # as `Server.load_models`
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)

    def close(self) -> None:
        """Ends threads and frees the model."""
        self._classifier.drain(0)
        self._classifier.close()
        self._repository.stop()

    def scrape(self) -> None:
        """Collects the metrics, as a scrape does."""
        list(self._registry.collect())

    def whole(self, shape: str, batch: int, rounds: int) -> None:
        """Calls of a shape, `rounds` of `batch` calls each. Raises AssertionError unless each is answered in its round."""
        method, observer, payload, parse, check = self._shapes[shape]
        budget, principal, pump, size = self._budget, self._principal, self._classifier.pump, len(payload)
        replies: list[bytes] = []
        for _ in range(rounds):
            calls = []
            for _ in range(batch):
                call = _Call(method, NEVER, _METADATA, observer, budget)
                call.replies = replies
                call.principal = principal
                budget.take(size)
                call.held_bytes = size
                calls.append(call)
            for call in calls:
                handle_unary(method, payload, call)
            pump()
            if len(replies) != batch:
                raise AssertionError(f"{len(replies)} of {batch} calls were answered in one batch")
            last = replies[-1]
            replies.clear()
        if not check(parse(last)) or budget.in_flight_bytes:
            raise AssertionError(f"{shape}: the answer is wrong")

    def model(self, batch: int, rounds: int) -> None:
        """The same batches in ONNX Runtime alone."""
        run, names = self._run, self._outputs
        images = np.stack([_PIXELS] * batch)
        for _ in range(rounds):
            run(names, {"image": images})


def _classify(**content: bytes) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model="digits", items=[pb.Item(**content)])


def _png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(_PIXELS[:, :, 0]).save(file, "PNG")
    return file.getvalue()


def _infer(*, raw: bool) -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, *_PIXELS.shape])
    if not raw:
        tensor.contents.uint_contents.extend(_PIXELS.ravel().tolist())
    return oip.ModelInferRequest(model_name="digits", inputs=[tensor], raw_input_contents=[_PIXELS.tobytes()] if raw else [])


def _is_classified(response: pb.ClassifyResponse) -> bool:
    return len(response.results) == 1 and len(response.results[0].predictions) == 5


def _is_inferred(response: oip.ModelInferResponse) -> bool:
    return [list(output.shape) for output in response.outputs] == [[1, 10], [1, 10]]
