"""One ONNX Runtime session of one model file, proved on the provider in use before anyone calls it loaded.

The only file that runs ONNX Runtime. Knows nothing of queues, versions or gRPC.

A file that Convoy exported says in its contract what it takes and gives. A foreign file has no contract: it is served by tensor,
as its graph says, if it takes one tensor of numbers, one row an item, and gives scores of classes.

Providers. `auto` takes CUDA where it works, else the CPU; what else the installed ONNX Runtime has is taken when it is asked for by
name. ONNX Runtime by itself goes on with the CPU when a provider does not initialise, or fails while it runs. Here the first is an
error, unless `auto` was asked for, and the second fails the batch.

On a GPU a batch is copied into buffers that lie there for good, one set for each of a few sizes, filled up to the next of them:
cuDNN then plans for these sizes alone, before the model is ready, and a CUDA graph can replay all of a batch's launches as one.
"""

import hashlib
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.errors import GoldenMismatch, InvalidModel, InvalidRequest, LoadError, UserError, first_line
from service.model.contract import MAX_GOLDEN_PIXELS, METADATA_KEY, Contract
from service.model.preprocessing import decode
from service.model.providers import ONNX_RUNTIME_NAMES, Provider, ProviderName
from service.model.signature import Graph, graph_of_contract, graph_of_foreign, mixes_items
from service.model.signature import TensorSpec as TensorSpec

log = logging.getLogger(__name__)

# Batches come in few sizes, each warmed up: a plan is chosen once for each, so the exhaustive search that is ONNX Runtime's default
# would make loading slow for little. The arena would otherwise double whenever it grows.
_CUDA = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
_TOLERANCE_OF: dict[ProviderName, ProviderName] = {"tensorrt": "cuda", "openvino": "cpu"}
"""Whose tolerance counts where golden samples state none: that of the same kind of arithmetic."""

_PASSES = 4
_PASSES_SECONDS = 0.05
"""All sizes of batch are measured so often, and for so long, by turns, so that what disturbs for a moment spoils none of them. The
first time warms the session up."""
_MEASURED_SECONDS = 0.1
"""A size has been measured for long enough if it came to this: what takes long varies little."""

_LONG_SECONDS = 1.0
"""Of batches that take longer, only those are measured, and made, whose items take less time each than in smaller ones."""

_NO_CUDA_GRAPH = -1
_GAIN = 0.95
"""What takes more than so much of the time that it took otherwise has gained nothing: a CUDA graph, or a larger batch."""


class _Bucket:
    """Batches of up to `items` on a device: buffers that never move, for the input and for each output."""

    def __init__(self, session: ort.InferenceSession, graph: Graph, device: str, items: int) -> None:
        self.items = items
        self._filled = 0
        self._session = session
        self._staging = np.zeros((items, *graph.input.shape), graph.input.dtype)
        self._input = ort.OrtValue.ortvalue_from_numpy(self._staging, device, 0)
        self._outputs = [
            ort.OrtValue.ortvalue_from_shape_and_type((items, *spec.shape), spec.dtype, device, 0) for spec in graph.outputs
        ]
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(graph.input.name, self._input)
        for spec, output in zip(graph.outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(spec.name, output)
        self._options = _run_options(_NO_CUDA_GRAPH)

    def run(self, images: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs for at most `items` images."""
        count = len(images)
        if count < self.items:
            self._staging[:count] = images
            self._staging[count : self._filled] = 0  # nobody's answer depends on what an earlier batch held, nor fails by it
            self._filled = count
            images = self._staging
        self._input.update_inplace(images)
        self._session.run_with_iobinding(self._binding, self._options)
        return [output.numpy()[:count] for output in self._outputs]

    def warm_up(self, cuda_graphs: bool) -> None:
        """Has cuDNN plan for this size, and keeps a CUDA graph of it if that is faster."""
        without = _best_seconds(self, self._staging)
        if cuda_graphs:
            self._options = _run_options(self.items)
            if _best_seconds(self, self._staging) > _GAIN * without:
                self._options = _run_options(_NO_CUDA_GRAPH)


class UncapturedSession:
    """A session on a GPU, whose runs are part of no CUDA graph: they come with any number of items, from anywhere in memory."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._options = _run_options(_NO_CUDA_GRAPH)
        self.get_inputs = session.get_inputs
        self.get_outputs = session.get_outputs

    def run(self, names: Sequence[str], feed: dict[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """As of the session."""
        outputs: Sequence[NDArray[Any]] = self._session.run(names, feed, self._options)
        return outputs


def _run_options(cuda_graph: int) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(cuda_graph))
    return options


def _best_seconds(bucket: _Bucket, images: NDArray[Any]) -> float:
    seconds = []
    for _ in range(5):  # the first ones plan, allocate and capture
        start = time.perf_counter()
        bucket.run(images)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


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
        digest: SHA-256 of the file, without its external data, in hexadecimal.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        graph: Graph,
        labels: tuple[str, ...],
        contract: Contract | None,
        provider: ProviderName,
        threads: int,
        digest: str,
        buckets: Sequence[_Bucket] = (),
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
        self._shapes = [output.shape for output in graph.outputs]
        self._run = session.run if provider == "cpu" else UncapturedSession(session).run
        self._buckets = sorted(buckets, key=lambda bucket: bucket.items)

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
        """For [n, *input.shape] of the input's dtype one array [n, *shape] an output, in the order of `outputs`.

        Raises:
            ValueError: the graph gave items of another shape than when it was loaded.
        """
        outputs: Sequence[NDArray[Any]]
        if self._batch_items:
            outputs = self._in_batches(images, self._batch_items)
        elif self._buckets:
            outputs = self._in_buckets(images)
        else:
            outputs = self._run(self._names, {self.input.name: images})
        for name, shape, output in zip(self._names, self._shapes, outputs, strict=True):
            if output.shape[1:] != shape:
                raise ValueError(
                    f"the graph gave {name!r} {output.shape} for {len(images)} items; each had {shape} when it was loaded"
                )
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

    def _in_buckets(self, images: NDArray[Any]) -> Sequence[NDArray[Any]]:
        """In the smallest bucket that holds them; more than the largest holds one after the other."""
        largest = self._buckets[-1].items
        if len(images) <= largest:
            return next(bucket for bucket in self._buckets if bucket.items >= len(images)).run(images)
        whole = [np.empty((len(images), *spec.shape), spec.dtype) for spec in self.outputs]
        for at in range(0, len(images), largest):
            for output, part in zip(whole, self._in_buckets(images[at : at + largest]), strict=True):
                output[at : at + largest] = part
        return whole

    def measure(self, max_batch_items: int) -> dict[int, float]:
        """Warms the session up and returns seconds a batch by items in it, for powers of two up to the largest batch.

        The largest is `max_batch_items`, or less: what the graph takes at a time, what there is memory for, what ends within a
        second or gains by being larger.

        Raises:
            LoadError: not even one item can be computed.
        """
        sizes = self._sizes(min(max_batch_items, self._batch_items or max_batch_items))
        images = np.zeros((sizes[-1], *self.input.shape), self.input.dtype)
        seconds = dict.fromkeys(sizes, math.inf)
        spent = dict.fromkeys(sizes, 0.0)
        passes = 1
        while sizes and (passes < _PASSES or sum(spent.values()) < _PASSES_SECONDS):
            passes += 1
            for items in sizes:
                start = time.perf_counter()
                self.predict(images[:items])
                took = time.perf_counter() - start
                seconds[items] = min(seconds[items], took)
                spent[items] += took
            sizes = [items for items in sizes if spent[items] < _MEASURED_SECONDS]
        return seconds

    def _sizes(self, max_batch_items: int) -> list[int]:
        """The sizes to measure, each of which has been run once."""
        sizes: list[int] = []
        least = math.inf
        for items in batch_sizes(max_batch_items):
            start = time.perf_counter()
            try:
                self.predict(np.zeros((items, *self.input.shape), self.input.dtype))
            except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
                if not sizes:
                    raise LoadError(f"the model fails on a batch of {items}, all zeros: {first_line(error)}") from None
                log.warning("batches of %d items fail, so they have at most %d: %s", items, sizes[-1], first_line(error))
                break
            took = time.perf_counter() - start
            sizes.append(items)
            if took > _LONG_SECONDS and took > _GAIN * least * items:
                break
            least = min(least, took / items)
        return sizes


def batch_sizes(max_items: int) -> list[int]:
    """The sizes of batches that are warmed up and measured: powers of two, and the largest."""
    return sorted({1 << power for power in range(max_items.bit_length())} | {max_items})


def load_model(
    source: Path | bytes,
    provider: Provider,
    threads: int,
    foreign_labels: tuple[str, ...] | None = None,
    max_batch_items: int = 0,
    weights: Path | None = None,
) -> Model:
    """Loads a model and replays its golden samples on the provider in use.

    Args:
        source: an ONNX file, or what is in it.
        provider: `auto` takes CUDA where it works, else the CPU. Any other fails where it does not work.
        threads: how many threads ONNX Runtime computes with on the CPU, at least 1.
        foreign_labels: names of the classes of a file without a contract; their numbers if not given.
        max_batch_items: on a GPU, the largest batch to make buffers for; 0 has every batch copied as it comes.
        weights: where the files lie in which the graph says that its weights are, if it does; a path's own folder.

    Raises:
        InvalidModel: not an ONNX file, no valid contract, a graph that is not as the contract says, or, without one, a graph that
            cannot be served by tensor, or another number of labels than it has classes.
        GoldenMismatch: the provider's answers to the golden samples are not those of the contract.
        LoadError: the provider asked for is not to be had.
    """
    try:
        content = _Content(source, weights) if isinstance(source, bytes) else _Content(source.read_bytes(), source.parent)
    except OSError as error:
        raise InvalidModel(f"cannot read the model file: {error.strerror}") from None
    if provider == "auto":
        if ONNX_RUNTIME_NAMES["cuda"] in ort.get_available_providers():
            try:
                return _load_on("cuda", content, threads, foreign_labels, max_batch_items)
            except ProviderUnavailable as error:
                log.warning("computing on the CPU: %s", error)
        provider = "cpu"
    return _load_on(provider, content, threads, foreign_labels, max_batch_items)


class _Content(NamedTuple):
    """What is in an ONNX file, and the folder of its external data."""

    graph: bytes
    folder: Path | None = None


class ProviderUnavailable(LoadError):
    """The provider asked for is not in the installed ONNX Runtime, or does not work on this machine."""


def _load_on(
    provider: ProviderName, content: _Content, threads: int, labels: tuple[str, ...] | None, max_batch_items: int
) -> Model:
    if provider == "cuda" and max_batch_items:
        try:
            return _load(provider, content, threads, labels, max_batch_items, cuda_graphs=True)
        except ProviderUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - such as a node that CUDA does not have; all else is found again below
            log.info("without CUDA graphs: %s", first_line(error))
    return _load(provider, content, threads, labels, max_batch_items, cuda_graphs=False)


def _load(
    provider: ProviderName, content: _Content, threads: int, labels: tuple[str, ...] | None, max_batch_items: int, cuda_graphs: bool
) -> Model:
    session = _open_session(content, provider, threads, cuda_graphs)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    contract = Contract.from_json(text) if text is not None else None
    if contract is not None:
        graph, names = graph_of_contract(session, contract), contract.labels
    else:
        tried = UncapturedSession(session)
        graph = graph_of_foreign(tried, None if labels is None else len(labels))
        names = _foreign_labels(graph, labels)
        if mixes_items(tried, graph):
            log.warning("an item's scores change with what is in its batch, or by chance; max_batch_size = 1 keeps items apart")
    buckets: list[_Bucket] = []
    if provider in ("cuda", "tensorrt") and max_batch_items and not graph.batch_items:
        for items in reversed(batch_sizes(max_batch_items)):  # the largest first: the arena grows once
            buckets.append(_Bucket(session, graph, "cuda", items))
            buckets[-1].warm_up(cuda_graphs)
    digest = hashlib.sha256(content.graph).hexdigest()
    model = Model(session, graph, names, contract, provider, threads, digest, buckets)
    if contract is not None:
        _replay_golden(model, contract)
    return model


def check_provider(provider: Provider) -> None:
    """Raises UserError if the installed ONNX Runtime cannot have the provider at all."""
    if provider != "auto" and ONNX_RUNTIME_NAMES[provider] not in ort.get_available_providers():
        raise UserError(_not_installed(provider))


def fell_back(asked: Provider, used: ProviderName) -> bool:
    """Whether a model runs on the CPU although CUDA is in the installed ONNX Runtime and nobody asked for the CPU."""
    return asked == "auto" and used == "cpu" and ONNX_RUNTIME_NAMES["cuda"] in ort.get_available_providers()


def _not_installed(provider: ProviderName) -> str:
    installed = [name for name, known in ONNX_RUNTIME_NAMES.items() if known in ort.get_available_providers()]
    return (
        f"provider {provider!r} is not in the installed ONNX Runtime, which has {', '.join(installed)} "
        "(cuda and tensorrt need Convoy's extra 'gpu' instead of 'cpu')"
    )


def _open_session(content: _Content, provider: ProviderName, threads: int, cuda_graphs: bool = False) -> ort.InferenceSession:
    if ONNX_RUNTIME_NAMES[provider] not in ort.get_available_providers():
        raise ProviderUnavailable(_not_installed(provider))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Not longer than it takes to wake a thread: the transport and the decoders need the cores.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "5")
    options.log_severity_level = 4
    if content.folder is not None:  # else ONNX Runtime would look where the process was started
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(content.folder))
    cuda = (ONNX_RUNTIME_NAMES["cuda"], _CUDA | {"enable_cuda_graph": str(int(cuda_graphs))})
    providers: dict[ProviderName, list[tuple[str, dict[str, str]]]] = {
        "cuda": [cuda],
        "tensorrt": [(ONNX_RUNTIME_NAMES["tensorrt"], {}), cuda],
        "openvino": [(ONNX_RUNTIME_NAMES["openvino"], {"device_type": "CPU", "num_of_threads": str(threads)})],
        "cpu": [(ONNX_RUNTIME_NAMES["cpu"], {})],
    }
    try:
        session = ort.InferenceSession(content.graph, options, providers=providers[provider], enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
        if provider != "cpu":
            _open_session(content, "cpu", threads)  # which says so if it is the file's fault
            raise LoadError(f"provider {provider!r} cannot load it: {first_line(error)}") from None
        raise InvalidModel(f"ONNX Runtime cannot load the file: {first_line(error)}") from None
    if session.get_providers()[0] != ONNX_RUNTIME_NAMES[provider]:
        raise ProviderUnavailable(
            f"provider {provider!r} is in the installed ONNX Runtime, but does not initialise on this machine"
        )
    return session


def _foreign_labels(graph: Graph, names: tuple[str, ...] | None) -> tuple[str, ...]:
    classes = math.prod(graph.outputs[0].shape)
    if names is None:
        return tuple(map(str, range(classes)))
    if len(names) != classes:
        raise InvalidModel(f"labels.txt has {len(names)} labels; the graph gives {classes} classes in {graph.outputs[0].name!r}")
    return names


def _replay_golden(model: Model, contract: Contract) -> None:
    for index, sample in enumerate(contract.golden):
        try:
            image = decode(sample.image_png, contract.input, MAX_GOLDEN_PIXELS)
        except InvalidRequest as error:
            raise InvalidModel(f"golden sample {index}: {error}") from None
        try:
            got = model.probabilities(image[np.newaxis])[0]
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
            raise LoadError(f"golden sample {index}: the model raised: {first_line(error)}") from None
        provider = model.provider
        tolerance = sample.tolerance.get(provider, sample.tolerance.get(_TOLERANCE_OF.get(provider, provider)))
        if tolerance is None:
            raise GoldenMismatch(f"golden sample {index} states no tolerance for provider {model.provider!r}")
        difference = float(np.abs(got - np.asarray(sample.probabilities, np.float32)).max())
        if not difference <= tolerance:  # a NaN fails too
            raise GoldenMismatch(
                f"golden sample {index}: off by {difference:.2g} on {model.provider!r}, at most {tolerance:.2g} is allowed"
            )


class OpenGraph:
    """A graph as it stands, on the CPU: no contract, nothing checked but that it runs. For looking inside a model.

    Raises:
        InvalidModel: ONNX Runtime cannot load it.
    """

    def __init__(self, content: bytes, threads: int) -> None:
        self._session = _open_session(_Content(content), "cpu", threads)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """All that the graph gives for its one input, by name. Raises LoadError if it fails."""
        try:
            values = self._session.run(self._outputs, {self._session.get_inputs()[0].name: images})
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
            raise LoadError(f"the model raised: {first_line(error)}") from None
        return dict(zip(self._outputs, values, strict=True))
