"""One ONNX Runtime session of one model file, proved on the provider in use before anyone calls it loaded.

The only file that imports onnxruntime. Knows nothing of queues, versions or gRPC.

A file that Convoy exported says in its contract what it takes and gives. A foreign file has no contract: it is served by tensor,
as its graph says, if it takes one tensor of numbers, one row an item, and gives scores of classes.
"""

import hashlib
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.contract import INPUT_NAME, LOGITS_NAME, METADATA_KEY, PROBABILITIES_NAME, Contract, ProviderName
from service.errors import GoldenMismatch, InvalidModel, InvalidRequest, LoadError, UserError
from service.preprocessing import decode

log = logging.getLogger(__name__)

_PROVIDERS: dict[ProviderName, str] = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16), "tensor(double)": np.dtype(np.float64),
    "tensor(uint8)": np.dtype(np.uint8), "tensor(int8)": np.dtype(np.int8), "tensor(uint16)": np.dtype(np.uint16),
    "tensor(int16)": np.dtype(np.int16), "tensor(uint32)": np.dtype(np.uint32), "tensor(int32)": np.dtype(np.int32),
    "tensor(uint64)": np.dtype(np.uint64), "tensor(int64)": np.dtype(np.int64), "tensor(bool)": np.dtype(np.bool_),
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a graph takes or gives: its name there, and dtype and shape of one item, without the batch dimension."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of one item."""
        return self.dtype.itemsize * math.prod(self.shape)

    @cached_property
    def is_picture(self) -> bool:
        """Whether an item can be a decoded picture: uint8[H,W,C]."""
        return self.dtype == np.uint8 and len(self.shape) == 3 and self.shape[2] in (1, 3, 4)

    def __str__(self) -> str:
        return f"{self.dtype} {' x '.join(map(str, self.shape))}"


class Model:
    """A loaded model. `predict` may be called from any thread, by one thread at a time.

    Attributes:
        input: what it takes.
        outputs: what it gives. The first holds the scores of the classes: K numbers an item. With a contract these are its
            probabilities, and the second are the logits.
        labels: the K names of the classes.
        foreign: whether the file has no contract: Convoy did not write it.
        provider: where it computes.
        threads: how many threads ONNX Runtime computes with.
        digest: SHA-256 of the file, in hexadecimal.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        graph: "_Graph",
        labels: tuple[str, ...],
        contract: Contract | None,
        provider: ProviderName,
        threads: int,
        digest: str,
    ) -> None:
        self.input = graph.input
        self.outputs = graph.outputs
        self.labels = labels
        self.foreign = contract is None
        self.provider = provider
        self.threads = threads
        self.digest = digest
        self._contract = contract
        self._batch_items = graph.batch_items
        self._names = [output.name for output in graph.outputs]
        self._run = session.run

    @property
    def contract(self) -> Contract:
        """What the file says of itself. Raises InvalidModel for a foreign one."""
        if self._contract is None:
            raise InvalidModel(f"no contract: Convoy did not write this file (it has no {METADATA_KEY!r} in its metadata)")
        return self._contract

    @property
    def precision(self) -> str:
        """Of the weights, as the contract says; `unknown` for a foreign model."""
        return "unknown" if self.foreign else self.contract.precision

    def predict(self, images: NDArray[Any]) -> Sequence[NDArray[Any]]:
        """For [n, *input.shape] of the input's dtype one array [n, *shape] an output, in the order of `outputs`."""
        if self._batch_items:
            return self._in_batches(images, self._batch_items)
        outputs: list[NDArray[Any]] = self._run(self._names, {self.input.name: images})
        return outputs

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities float32[n,K] for pictures uint8[n,H,W,C]. For a model with a contract alone: others give scores."""
        return self.predict(images)[0]

    def _in_batches(self, images: NDArray[Any], batch_items: int) -> Sequence[NDArray[Any]]:
        """For a graph that takes batches of exactly `batch_items`: one after the other, the last filled up."""
        count = len(images)
        rest = -count % batch_items
        if rest:
            images = np.concatenate([images, np.zeros((rest, *images.shape[1:]), images.dtype)])
        batches = [
            self._run(self._names, {self.input.name: images[at : at + batch_items]}) for at in range(0, len(images), batch_items)
        ]
        return [np.concatenate(parts)[:count] for parts in zip(*batches, strict=True)]

    def measure(self, max_batch_items: int) -> dict[int, float]:
        """Warms the session up and returns seconds a batch by items in it, for powers of two up to the largest batch."""
        sizes = {1 << power for power in range(max_batch_items.bit_length())} | {max_batch_items}
        seconds = {}
        for items in sorted(sizes):
            images = np.zeros((items, *self.input.shape), self.input.dtype)
            self.predict(images)
            runs = []
            for _ in range(3):
                start = time.perf_counter()
                self.predict(images)
                runs.append(time.perf_counter() - start)
            seconds[items] = min(runs)
        return seconds


def load(
    path: Path, provider: Literal["auto", "cuda", "cpu"], threads: int, foreign_labels: tuple[str, ...] | None = None
) -> Model:
    """Loads a model file and replays its golden samples on the provider in use.

    Args:
        path: an ONNX file.
        provider: `auto` takes CUDA where it works, else the CPU. `cuda` fails where CUDA does not work.
        threads: how many threads ONNX Runtime computes with, at least 1.
        foreign_labels: names of the classes of a file without a contract; their numbers if not given.

    Raises:
        InvalidModel: not an ONNX file, no valid contract, a graph that is not as the contract says, or, without one, a graph that
            cannot be served by tensor, or another number of labels than it has classes.
        GoldenMismatch: the provider's answers to the golden samples are not those of the contract.
        LoadError: the provider asked for is not to be had.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidModel(f"cannot read the model file: {error.strerror}") from None
    session, used = _open_session(content, provider, threads)
    digest = hashlib.sha256(content).hexdigest()
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        graph = _foreign_graph(session)
        return Model(session, graph, _foreign_labels(graph, foreign_labels), None, used, threads, digest)
    contract = Contract.from_json(text)
    if foreign_labels is not None:
        log.warning("%s: the labels are those of the file's contract; labels.txt is not used", path.parent.parent.name)
    model = Model(session, _contract_graph(session, contract), contract.labels, contract, used, threads, digest)
    _replay_golden(model, contract)
    return model


def cpu_budget() -> int:
    """CPUs that this process may use: its affinity, cut by the cgroup's quota, at least 1. ONNX Runtime sees neither limit."""
    budget = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            budget = min(budget, int(quota) / int(period))
    except (OSError, ValueError):
        pass  # no cgroup v2 here: affinity is all there is to go by
    return max(1, int(budget))


def check_provider(provider: Literal["auto", "cuda", "cpu"]) -> None:
    """Raises UserError if the installed ONNX Runtime cannot have the provider at all."""
    if provider != "auto" and _PROVIDERS[provider] not in ort.get_available_providers():
        raise UserError(
            f"provider {provider!r} is not in the installed ONNX Runtime (cuda needs Convoy's extra 'gpu' instead of 'cpu')"
        )


def _open_session(
    content: bytes, provider: Literal["auto", "cuda", "cpu"], threads: int
) -> tuple[ort.InferenceSession, ProviderName]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take the cores that the transport and the decoders need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    wanted: list[ProviderName] = ["cuda", "cpu"] if provider == "auto" else [provider]
    names = [_PROVIDERS[name] for name in wanted if _PROVIDERS[name] in ort.get_available_providers()]
    try:
        session = ort.InferenceSession(content, options, providers=names)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
        raise InvalidModel(f"ONNX Runtime cannot load the file: {_first_line(error)}") from None
    # ONNX Runtime falls back to the CPU without an error when CUDA does not initialise.
    used: ProviderName = "cuda" if session.get_providers()[0] == _PROVIDERS["cuda"] else "cpu"
    if provider == "cuda" and used != "cuda":
        raise LoadError("provider 'cuda' was asked for, but CUDA does not initialise here")
    return session, used


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


class _Graph(NamedTuple):
    """What a session takes and gives; `batch_items` is 0 if it takes batches of any number of items, else that number."""

    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    batch_items: int = 0


def _contract_graph(session: ort.InferenceSession, contract: Contract) -> _Graph:
    inputs = {node.name: node for node in session.get_inputs()}
    if set(inputs) != {INPUT_NAME} or inputs[INPUT_NAME].type != "tensor(uint8)":
        raise InvalidModel(f"the graph must take one uint8 input named {INPUT_NAME!r}; it takes {sorted(inputs)}")
    shape = inputs[INPUT_NAME].shape
    if len(shape) != 4 or tuple(shape[1:]) != contract.input.shape:
        raise InvalidModel(f"the graph takes {shape}, the contract says [N, {', '.join(map(str, contract.input.shape))}]")
    if isinstance(shape[0], int):
        raise InvalidModel(f"the graph takes batches of exactly {shape[0]}; the first dimension must be dynamic")
    outputs = {node.name: node.shape for node in session.get_outputs()}
    for name in (PROBABILITIES_NAME, LOGITS_NAME):
        if name not in outputs:
            raise InvalidModel(f"the graph has no output named {name!r}; it gives {sorted(outputs)}")
        if outputs[name][-1] != len(contract.labels):
            raise InvalidModel(f"the graph gives {outputs[name][-1]} {name}, the contract has {len(contract.labels)} labels")
    scores = tuple(TensorSpec(name, np.dtype(np.float32), (len(contract.labels),)) for name in (PROBABILITIES_NAME, LOGITS_NAME))
    return _Graph(TensorSpec(INPUT_NAME, np.dtype(np.uint8), contract.input.shape), scores)


def _foreign_graph(session: ort.InferenceSession) -> _Graph:
    """What a graph without a contract takes and gives. Outputs are found out by running it: graphs often leave shapes open."""
    inputs = session.get_inputs()
    names = {node.name for node in (*inputs, *session.get_outputs())}
    if {INPUT_NAME, PROBABILITIES_NAME, LOGITS_NAME} <= names:
        raise InvalidModel(f"no contract: the graph is one of Convoy's, but the file has no {METADATA_KEY!r} in its metadata")
    if len(inputs) != 1:
        raise InvalidModel(f"the graph takes {len(inputs)} inputs ({', '.join(node.name for node in inputs)}); one is accepted")
    [node] = inputs
    dtype = _DTYPES.get(node.type)
    if dtype is None or not (dtype.kind == "f" or dtype == np.uint8):
        raise InvalidModel(f"the graph takes {node.type} {node.name!r}; float16, float32, float64 and uint8 are accepted")
    if len(node.shape) < 2 or not all(isinstance(size, int) and size > 0 for size in node.shape[1:]):
        raise InvalidModel(f"the graph takes {node.shape}; every dimension but the first, of the batch, must be there and be fixed")
    batch_items = node.shape[0] if isinstance(node.shape[0], int) else 0
    taken = TensorSpec(node.name, dtype, tuple(node.shape[1:]))
    outputs = _try_outputs(session, taken, batch_items or 2)
    scores = next(
        (output for output in outputs if output.dtype.kind == "f" and _classes(output) == max(output.shape, default=1)), None
    )
    if scores is None:
        given = ", ".join(f"{output.name} ({output})" for output in outputs)
        raise InvalidModel(f"the graph is not a classifier's: it gives {given}; one output must be float, a number for each class")
    others = (output for output in outputs if output is not scores)
    return _Graph(taken, (scores, *others), batch_items)


def _try_outputs(session: ort.InferenceSession, taken: TensorSpec, items: int) -> list[TensorSpec]:
    for node in session.get_outputs():
        if node.type not in _DTYPES:
            raise InvalidModel(f"the graph gives {node.type} {node.name!r}; tensors of numbers are accepted")
    nodes = session.get_outputs()
    try:
        arrays = session.run([node.name for node in nodes], {taken.name: np.zeros((items, *taken.shape), taken.dtype)})
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
        raise InvalidModel(f"the graph fails on {items} items of zeros: {_first_line(error)}") from None
    for node, array in zip(nodes, arrays, strict=True):
        if array.ndim < 1 or len(array) != items:
            raise InvalidModel(f"the graph gives {node.name!r} {array.shape} for {items} items; one row an item is accepted")
    return [TensorSpec(node.name, array.dtype, array.shape[1:]) for node, array in zip(nodes, arrays, strict=True)]


def _classes(scores: TensorSpec) -> int:
    return math.prod(scores.shape)


def _foreign_labels(graph: _Graph, names: tuple[str, ...] | None) -> tuple[str, ...]:
    classes = _classes(graph.outputs[0])
    if names is None:
        return tuple(map(str, range(classes)))
    if len(names) != classes:
        raise InvalidModel(f"labels.txt has {len(names)} labels; the graph gives {classes} classes in {graph.outputs[0].name!r}")
    return names


def _replay_golden(model: Model, contract: Contract) -> None:
    for index, sample in enumerate(contract.golden):
        try:
            image = decode(sample.image_png, contract.input, max_pixels=1 << 24)
        except InvalidRequest as error:
            raise InvalidModel(f"golden sample {index}: {error}") from None
        try:
            got = model.probabilities(image[np.newaxis])[0]
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
            raise LoadError(f"golden sample {index}: the model raised: {_first_line(error)}") from None
        tolerance = sample.tolerance.get(model.provider)
        if tolerance is None:
            raise GoldenMismatch(f"golden sample {index} states no tolerance for provider {model.provider!r}")
        difference = float(np.abs(got - np.asarray(sample.probabilities, np.float32)).max())
        if not difference <= tolerance:  # a NaN fails too
            raise GoldenMismatch(
                f"golden sample {index}: off by {difference:.2g} on {model.provider!r}, at most {tolerance:.2g} is allowed"
            )
