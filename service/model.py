"""One ONNX Runtime session of one model file, proved on the provider in use before anyone calls it loaded.

The only file that imports onnxruntime. Knows nothing of queues, versions or gRPC.
"""

import hashlib
import logging
import os
import time
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.contract import INPUT_NAME, LOGITS_NAME, METADATA_KEY, PROBABILITIES_NAME, Contract, ProviderName
from service.errors import GoldenMismatch, InvalidModel, InvalidRequest, LoadError, UserError
from service.preprocessing import decode

log = logging.getLogger(__name__)

_PROVIDERS: dict[ProviderName, str] = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}


class Model:
    """A loaded model. `predict` may be called from any thread, by one thread at a time."""

    def __init__(self, session: ort.InferenceSession, contract: Contract, provider: ProviderName, threads: int, digest: str):
        self.contract = contract
        self.provider = provider
        self.threads = threads
        self.digest = digest
        self._run = session.run

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities float32[N,K] for images uint8[N,H,W,C]."""
        probabilities: NDArray[np.float32] = self._run([PROBABILITIES_NAME], {INPUT_NAME: images})[0]
        return probabilities

    def measure(self, max_batch_items: int) -> dict[int, float]:
        """Warms the session up and returns seconds a batch by items in it, for powers of two up to the largest batch."""
        sizes = {1 << power for power in range(max_batch_items.bit_length())} | {max_batch_items}
        seconds = {}
        for items in sorted(sizes):
            images = np.zeros((items, *self.contract.input.shape), np.uint8)
            self.predict(images)
            runs = []
            for _ in range(3):
                start = time.perf_counter()
                self.predict(images)
                runs.append(time.perf_counter() - start)
            seconds[items] = min(runs)
        return seconds


def load(path: Path, provider: Literal["auto", "cuda", "cpu"], threads: int) -> Model:
    """Loads a model file and replays its golden samples on the provider in use.

    Args:
        path: an ONNX file with a contract.
        provider: `auto` takes CUDA where it works, else the CPU. `cuda` fails where CUDA does not work.
        threads: how many threads ONNX Runtime computes with, at least 1.

    Raises:
        InvalidModel: not an ONNX file, no valid contract, or a graph that is not as the contract says.
        GoldenMismatch: the provider's answers to the golden samples are not those of the contract.
        LoadError: the provider asked for is not to be had.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidModel(f"cannot read the model file: {error.strerror}") from None
    session, used = _open_session(content, provider, threads)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise InvalidModel(f"no contract: the file has no {METADATA_KEY!r} in its metadata (was it written by `convoy export`?)")
    contract = Contract.from_json(text)
    _check_graph(session, contract)
    model = Model(session, contract, used, threads, hashlib.sha256(content).hexdigest())
    _replay_golden(model)
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


def fell_back(asked: Literal["auto", "cuda", "cpu"], used: ProviderName) -> bool:
    """Whether a model runs on the CPU although CUDA is in the installed ONNX Runtime and nobody asked for the CPU."""
    return asked == "auto" and used == "cpu" and _PROVIDERS["cuda"] in ort.get_available_providers()


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


def _check_graph(session: ort.InferenceSession, contract: Contract) -> None:
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


def _replay_golden(model: Model) -> None:
    for index, sample in enumerate(model.contract.golden):
        try:
            image = decode(sample.image_png, model.contract.input, max_pixels=1 << 24)
        except InvalidRequest as error:
            raise InvalidModel(f"golden sample {index}: {error}") from None
        try:
            got = model.predict(image[np.newaxis])[0]
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
