"""Loading a model file: read, opened on a provider, checked against its contract, proved on its golden samples.

A file that Convoy exported has a contract, which states what the model takes and gives. A file without one is served by tensor, if
its graph takes one tensor of numbers, one row an item, and gives scores of classes.
"""

import logging
from pathlib import Path

import numpy as np

from service.errors import GoldenMismatch, InvalidModel, InvalidRequest, LoadError, first_line
from service.model.contract import MAX_GOLDEN_PIXELS, METADATA_KEY, PRODUCER, Contract
from service.model.declared import Declared
from service.model.graph_decoding import DecodingGraph, takes_a_file
from service.model.inference import Model, batch_sizes
from service.model.inferred_signature import depends_on_batch, infer_signature
from service.model.model_files import ModelContent, read_model
from service.model.preprocessing import decode, pixels_digest
from service.model.providers import Provider, ProviderName
from service.model.session import Bucket, ProviderUnavailable, UncapturedSession, is_installed, open_session
from service.model.signature import contract_signature

log = logging.getLogger(__name__)

_TOLERANCE_OF: dict[ProviderName, ProviderName] = {"tensorrt": "cuda", "openvino": "cpu"}
"""The provider whose tolerance applies where golden samples state none: it has the same kind of arithmetic."""


def load_model(
    source: Path | ModelContent,
    provider: Provider,
    threads: int,
    labels: tuple[str, ...] | None = None,
    max_batch_items: int = 0,
    name: str = "",
    declared: Declared = Declared(),  # noqa: B008 - it cannot change
) -> Model:
    """Loads a model and checks it on the provider in use.

    Args:
        source: an ONNX file, beside which its files of weights are, or what was read of them.
        provider: `auto` takes CUDA where it works, else the CPU. Any other fails where it does not work.
        threads: how many threads ONNX Runtime uses on the CPU, at least 1.
        labels: names of the classes of a model without a contract; those in its metadata, or their numbers, if not given.
        max_batch_items: on a GPU, the largest batch to allocate buffers for; 0 allocates none.
        name: the model's name in log lines, such as "model digits version 1"; the path of the file if not given.
        declared: what is said of a model without a contract.

    Raises:
        InvalidModel: not an ONNX file; a file of weights that is missing or too short; an invalid contract, or a graph that differs
            from it; or, without a contract, a graph that cannot be served by tensor, or another number of labels than of classes.
        GoldenMismatch: the provider's probabilities of a golden sample are not those of the contract.
        FilesChanged: the files changed while they were read.
        LoadError: the provider is not available.
    """
    content = read_model(source) if isinstance(source, Path) else source
    name = name or (str(source) if isinstance(source, Path) else f"model of digest {content.digest[:16]}")
    if provider == "auto":
        if is_installed("cuda"):
            try:
                return _load_on("cuda", content, threads, labels, max_batch_items, name, declared)
            except ProviderUnavailable as error:
                log.warning("%s: CUDA is not available, using the CPU: %s", name, error)
        provider = "cpu"
    return _load_on(provider, content, threads, labels, max_batch_items, name, declared)


def _load_on(
    provider: ProviderName,
    content: ModelContent,
    threads: int,
    labels: tuple[str, ...] | None,
    max_batch_items: int,
    name: str,
    declared: Declared,
) -> Model:
    """With CUDA graphs if the model can run as one."""
    if provider == "cuda" and max_batch_items:
        try:
            return _load(provider, content, threads, labels, max_batch_items, name, declared, cuda_graphs=True)
        except ProviderUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - such as a node that CUDA does not have; other errors recur below
            log.info("%s: runs without CUDA graphs: %s", name, first_line(error))
    return _load(provider, content, threads, labels, max_batch_items, name, declared, cuda_graphs=False)


def _load(
    provider: ProviderName,
    content: ModelContent,
    threads: int,
    labels: tuple[str, ...] | None,
    max_batch_items: int,
    name: str,
    declared: Declared,
    cuda_graphs: bool,
) -> Model:
    opened = open_session(content, provider, threads, cuda_graphs)
    session = opened if provider == "cpu" else UncapturedSession(opened)
    about = opened.get_modelmeta()
    metadata = about.custom_metadata_map
    contract = Contract.from_json(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
    inferred = None
    if contract is not None:
        signature, labels = contract_signature(session, contract), contract.labels
    else:
        if about.producer_name == PRODUCER:
            raise InvalidModel(f"no contract: the graph is one of Convoy's, but the file has no {METADATA_KEY!r} in its metadata")
        if takes_a_file(session):
            session = DecodingGraph(session)
        inferred = infer_signature(session, labels, name, declared, metadata)
        signature, labels = inferred.signature, inferred.labels
        if depends_on_batch(session, signature):
            log.warning(
                "%s: an item's scores depend on its batch or are not deterministic; max_batch_size = 1 keeps items apart", name
            )
    buckets: list[Bucket] = []
    if provider in ("cuda", "tensorrt") and max_batch_items and not signature.fixed_batch_items:
        for items in reversed(batch_sizes(max_batch_items)):  # the largest first: the arena grows once
            buckets.append(Bucket(opened, signature, "cuda", items))
            buckets[-1].warm_up(cuda_graphs)
    model = Model(session, signature, labels, contract, provider, threads, content.digest, buckets, name, content.signer, inferred)
    if contract is not None:
        _check_golden_samples(model, contract)
    return model


def _check_golden_samples(model: Model, contract: Contract) -> None:
    provider, names = model.provider, [output.name for output in model.outputs]
    for index, sample in enumerate(contract.golden):
        try:
            image = decode(sample.image, contract.input, MAX_GOLDEN_PIXELS)
        except InvalidRequest as error:
            raise InvalidModel(f"golden sample {index}: {error}") from None
        if sample.pixels_sha256 not in ("", pixels_digest(image)):
            raise GoldenMismatch(f"golden sample {index} mismatch: the picture becomes other pixels than at export")
        try:
            outputs = dict(zip(names, model.predict(image[np.newaxis]), strict=True))
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
            raise LoadError(f"golden sample {index}: the model raised: {first_line(error)}") from None
        tolerance = sample.tolerance.get(provider, sample.tolerance.get(_TOLERANCE_OF.get(provider, provider)))
        if tolerance is None:
            raise GoldenMismatch(f"golden sample {index} states no tolerance for provider {provider!r}")
        pairs = zip(contract.heads, sample.probabilities, strict=True)
        differences = [np.abs(outputs[head.output][0] - np.asarray(row, np.float32)) for head, row in pairs]
        difference = float(np.concatenate(differences).max())
        if not difference <= tolerance:  # a NaN fails too
            raise GoldenMismatch(
                f"golden sample {index} mismatch on {provider}: largest difference {difference:.2g}, tolerance {tolerance:.2g}"
            )
