"""ONNX Runtime sessions: which providers are installed, opening a session on one, and fixed buffers for batches on a GPU.

The only module of service/ that imports onnxruntime.

ONNX Runtime by itself falls back to the CPU when a provider does not initialise, or fails while it runs. Here the first raises
ProviderUnavailable, and the second fails the batch.

On the CPU, what sessions hold while they compute is one arena that all of them share: it is as large as the sessions that
compute at a time need, not as all that are there. Weights are outside of it, so that they are freed with their session.

On a GPU a batch is copied into buffers that stay where they are, one set (a bucket) for each of a few batch sizes, padded to the
next size. So cuDNN plans for these sizes only, before the model is ready, and a CUDA graph can launch all kernels at once.
"""

import functools
import importlib.machinery
import importlib.util
import logging
import math
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_c

from service.errors import InvalidModel, LoadError, UserError, first_line
from service.model.model_files import ModelContent
from service.model.providers import ONNX_RUNTIME_NAMES, Provider, ProviderName
from service.model.signature import Signature

# Each of a few batch sizes is planned once, so ONNX Runtime's default, an exhaustive search, would only make loading slow. Its
# default for the arena is to double whenever it grows.
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}

_SPIN_MICROSECONDS = 5
"""About as long as waking a thread takes. ONNX Runtime's threads must not hold cores that the transport and the decoders need."""

_FEW_SESSIONS = 16
"""So many may have threads of their own, and be measured at length, whatever they gain by it."""

_IDENTITY = (
    b'\x08\x08\x12\x00:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01sZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
"""An ONNX file whose graph is y = Identity(x), of one float32."""

_EXTENSIONS = "onnxruntime_extensions"
_EXTENSIONS_DOMAINS = (b"ai.onnx.contrib", b"com.microsoft.extensions")
"""A package of further operators, and the domains of those: DecodeImage is in the second."""

_NO_CUDA_GRAPH = -1
_CUDA_GRAPH_GAIN = 0.95
"""A CUDA graph is used if it takes less than this share of the time without one."""


log = logging.getLogger(__name__)

_arena_lock = threading.Lock()
_open: "weakref.WeakSet[ort.InferenceSession]" = weakref.WeakSet()


class ProviderUnavailable(LoadError):
    """The provider is not in the installed ONNX Runtime, or does not work on this machine."""


def is_installed(provider: ProviderName) -> bool:
    """Whether the installed ONNX Runtime has the provider; it need not work on this machine."""
    return ONNX_RUNTIME_NAMES[provider] in ort.get_available_providers()


def check_provider(provider: Provider) -> None:
    """Raises UserError if the installed ONNX Runtime does not have the provider."""
    if provider != "auto" and not is_installed(provider):
        raise UserError(_not_installed(provider))


def fell_back(configured: Provider, used: ProviderName) -> bool:
    """Whether `auto` took the CPU although the installed ONNX Runtime has CUDA."""
    return configured == "auto" and used == "cpu" and is_installed("cuda")


def _not_installed(provider: ProviderName) -> str:
    installed = ", ".join(name for name in ONNX_RUNTIME_NAMES if is_installed(name))
    return (
        f"provider {provider!r} is not in the installed ONNX Runtime, which has {installed} "
        "(cuda and tensorrt need Convoy's extra 'gpu' instead of 'cpu')"
    )


def sessions_are_few() -> bool:
    """Whether few sessions are open, so that one more need not be sparing with threads and time."""
    return len(_open) < _FEW_SESSIONS


def free_unused_memory() -> None:
    """Frees what the shared arena holds and no session uses. For after a session was closed; takes well below a millisecond."""
    if not _shares_arena():
        return
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    _identity_session().run(["y"], {"x": np.zeros(1, np.float32)}, options)  # the arena is freed after a run that asks for it


def _shares_arena() -> bool:
    with _arena_lock:
        return _register_arena()


@functools.cache
def _register_arena() -> bool:
    """Makes the arena, once in a process; False if this ONNX Runtime has none to share."""
    try:
        where = ort_c.OrtMemoryInfo("Cpu", ort_c.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort_c.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(where, None)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
        log.warning("ONNX Runtime has no arena that models can share: %s", first_line(error))
        return False
    return True


@functools.cache
def _identity_session() -> ort.InferenceSession:
    return open_session(ModelContent(_IDENTITY), "cpu", 1)


def open_session(content: ModelContent, provider: ProviderName, threads: int, cuda_graphs: bool = False) -> ort.InferenceSession:
    """A session on exactly this provider.

    Raises:
        ProviderUnavailable: it is not installed, or does not initialise.
        InvalidModel: the CPU cannot load the file either.
        LoadError: the provider cannot load the file, the CPU can.
    """
    if not is_installed(provider):
        raise ProviderUnavailable(_not_installed(provider))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))
    if _denormals_are_zero():
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.log_severity_level = 4
    needs_extensions = any(domain in content.graph for domain in _EXTENSIONS_DOMAINS)
    if needs_extensions:
        _register_extensions(options)
    if provider == "cpu" and _shares_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    if content.weights:  # they are copied while the session is made
        files = list(content.weights.values())
        options.add_external_initializers_from_files_in_memory(list(content.weights), files, list(map(len, files)))
    try:
        session = ort.InferenceSession(
            content.graph, options, providers=_provider_options(provider, threads, cuda_graphs), enable_fallback=0
        )
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
        if provider != "cpu":
            open_session(content, "cpu", threads)  # raises InvalidModel if the file is at fault
            raise LoadError(f"provider {provider!r} cannot load it: {first_line(error)}") from None
        hint = ""
        if needs_extensions and importlib.util.find_spec(_EXTENSIONS) is None:
            hint = " (it has operators of the package onnxruntime-extensions: install that where the server runs)"
        raise InvalidModel(f"ONNX Runtime cannot load the file: {first_line(error)}{hint}") from None
    if session.get_providers()[0] != ONNX_RUNTIME_NAMES[provider]:
        raise ProviderUnavailable(
            f"provider {provider!r} is in the installed ONNX Runtime, but does not initialise on this machine"
        )
    _open.add(session)
    return session


def _denormals_are_zero() -> bool:
    """Whether this thread takes denormal numbers for zero. ONNX Runtime's threads are told to do the same."""
    return math.ldexp(1.0, -1040) * 1.0 == 0.0


def _provider_options(provider: ProviderName, threads: int, cuda_graphs: bool) -> list[tuple[str, dict[str, str]]]:
    """The provider with its options, and after it the one that runs the nodes that it cannot."""
    cuda = (ONNX_RUNTIME_NAMES["cuda"], _CUDA_OPTIONS | {"enable_cuda_graph": str(int(cuda_graphs))})
    providers: dict[ProviderName, list[tuple[str, dict[str, str]]]] = {
        "cuda": [cuda],
        "tensorrt": [(ONNX_RUNTIME_NAMES["tensorrt"], {}), cuda],
        "openvino": [(ONNX_RUNTIME_NAMES["openvino"], {"device_type": "CPU", "num_of_threads": str(threads)})],
        "cpu": [(ONNX_RUNTIME_NAMES["cpu"], {})],
    }
    return providers[provider]


def _register_extensions(options: ort.SessionOptions) -> None:
    """Registers the operators of onnxruntime-extensions, which is no dependency, where it is installed.

    Its library is found without importing the package, which imports torch where that is installed, and that takes seconds.
    """
    package = importlib.util.find_spec(_EXTENSIONS)
    if package is not None:
        library = importlib.machinery.PathFinder.find_spec("_extensions_pydll", package.submodule_search_locations)
        if library is not None and library.origin is not None:
            options.register_custom_ops_library(library.origin)


class UncapturedSession:
    """A session whose runs belong to no CUDA graph: with any number of items, from anywhere in memory."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._options = _run_options(_NO_CUDA_GRAPH)
        self.get_inputs = session.get_inputs
        self.get_outputs = session.get_outputs

    def run(self, names: Sequence[str], feed: dict[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """As InferenceSession.run."""
        outputs: Sequence[NDArray[Any]] = self._session.run(names, feed, self._options)
        return outputs


class Bucket:
    """Buffers on a device for batches of up to `items`: one for the input and one for each output."""

    def __init__(self, session: ort.InferenceSession, signature: Signature, device: str, items: int) -> None:
        self.items = items
        self._filled = 0
        self._session = session
        self._staging = np.zeros((items, *signature.input.shape), signature.input.dtype)
        self._input = ort.OrtValue.ortvalue_from_numpy(self._staging, device, 0)
        self._outputs = [
            ort.OrtValue.ortvalue_from_shape_and_type((items, *spec.shape), spec.dtype, device, 0) for spec in signature.outputs
        ]
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(signature.input.name, self._input)
        for spec, output in zip(signature.outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(spec.name, output)
        self._options = _run_options(_NO_CUDA_GRAPH)

    def run(self, images: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs for at most `items` images."""
        count = len(images)
        if count < self.items:
            self._staging[:count] = images
            self._staging[count : self._filled] = 0  # no item of an earlier batch is computed again
            self._filled = count
            images = self._staging
        self._input.update_inplace(images)
        self._session.run_with_iobinding(self._binding, self._options)
        return [output.numpy()[:count] for output in self._outputs]

    def warm_up(self, cuda_graphs: bool) -> None:
        """Has cuDNN plan for this size, and captures a CUDA graph if that is faster."""
        without = self._best_seconds()
        if cuda_graphs:
            self._options = _run_options(self.items)
            if self._best_seconds() > _CUDA_GRAPH_GAIN * without:
                self._options = _run_options(_NO_CUDA_GRAPH)

    def _best_seconds(self) -> float:
        seconds = []
        for _ in range(5):  # the first runs plan, allocate and capture
            start = time.perf_counter()
            self.run(self._staging)
            seconds.append(time.perf_counter() - start)
        return min(seconds)


def _run_options(cuda_graph: int) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(cuda_graph))
    return options


class OpenGraph:
    """Any graph of one input on the CPU, without contract or checks. For looking inside a model."""

    def __init__(self, content: bytes, threads: int) -> None:
        """Raises InvalidModel if ONNX Runtime cannot load it."""
        self._session = open_session(ModelContent(content), "cpu", threads)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Every output by name. Raises LoadError if the graph fails."""
        try:
            values = self._session.run(self._outputs, {self._session.get_inputs()[0].name: images})
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
            raise LoadError(f"the model raised: {first_line(error)}") from None
        return dict(zip(self._outputs, values, strict=True))
