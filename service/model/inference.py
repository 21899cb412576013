"""A loaded model: predictions for batches of any size, and how long batches take. Knows nothing of queues, versions or gRPC."""

import logging
import math
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidModel, LoadError, first_line
from service.import_advice import import_advice
from service.model.contract import CLASS_WEIGHTS_NAME, LOGITS_NAME, METADATA_KEY, Contract, Head
from service.model.inferred_signature import Inferred
from service.model.providers import ProviderName
from service.model.scores import to_probabilities
from service.model.session import Bucket
from service.model.signature import Session, Signature

log = logging.getLogger(__name__)

_MIN_PASSES = 4
_MIN_PASSES_SECONDS = 0.05
"""`measure` runs all batch sizes in turn, at least this many times and for this long, so that a short disturbance spoils none."""

_ENOUGH_SECONDS = 0.1
"""A batch size that has been measured for this long in all is measured no more: long times vary little."""

_QUICK_SECONDS = 0.002
"""The same when there are many models to measure: what is wrong by a disturbance is corrected while serving."""

_LONG_SECONDS = 1.0
_LONG_BATCH_GAIN = 0.95
"""Batches that take longer than `_LONG_SECONDS` grow only while an item takes less than this share of its time in smaller ones."""


class Model:
    """A loaded model. `predict` may be called from any thread, on a GPU by one at a time.

    Attributes:
        input: what it takes.
        output_places: the places of `outputs` by name.
        outputs: what it gives. The first holds the scores, K numbers an item. With a contract these are probabilities, the
            second holds the logits, and those after it the probabilities of further heads.
        labels: the names of the K classes; of two, K may be 1.
        output_labels: by the name of each output that has one number a class: the labels, empty where nobody has named them.
        gives_probabilities: whether the scores are probabilities, or are known to become some by `to_probabilities`.
        score_kind: what the scores are, without a contract; None with one.
        to_probabilities: makes floating[n, labels] of the first output as floating[n,K]; None if that is to be taken as it is.
        has_contract: false for a model that Convoy did not write; it is served by tensor.
        takes_pictures: whether it takes picture files: by its contract, or because its graph decodes them.
        nan_is_in_all_scores: whether either all scores of an item are NaN or none, as a softmax makes them.
        provider: where it runs.
        threads: how many threads ONNX Runtime uses.
        digest: SHA-256 of the ONNX file followed by its files of weights, by name, in hexadecimal.
        name: its name in log lines.
        hidden: outputs that are computed for those who ask for them, by name; see `Contract`.
        class_weights: of the last layer of a network that gives its activations, float32[K,C]; None if the C are the classes.
        signer: who signed the version, as in `SignedFiles`; empty if no signature was asked for.
    """

    def __init__(
        self,
        session: Session,
        signature: Signature,
        labels: tuple[str, ...],
        contract: Contract | None,
        provider: ProviderName,
        threads: int,
        digest: str,
        buckets: Sequence[Bucket] = (),
        name: str = "model",
        signer: str = "",
        inferred: Inferred | None = None,
    ) -> None:
        self.input = signature.input
        self.outputs = signature.outputs
        self.output_places = {spec.name: place for place, spec in enumerate(signature.outputs)}
        self.labels = labels
        self.output_labels = _output_labels(contract) if inferred is None else inferred.output_labels
        self.score_kind = None if inferred is None else inferred.kind
        self.gives_probabilities = self.score_kind != "scores"
        self.to_probabilities = None if self.score_kind is None else to_probabilities(self.score_kind)
        self.has_contract = contract is not None
        self.takes_pictures = contract is not None or signature.input.is_picture_file
        self.nan_is_in_all_scores = contract is not None and contract.head != "multilabel"
        self.provider = provider
        self.threads = threads
        self.digest = digest
        self.name = name
        self.signer = signer
        self.hidden = {spec.name: spec for spec in signature.hidden}
        self.class_weights: NDArray[np.float32] | None = None
        self._contract = contract
        self._fixed_batch_items = signature.fixed_batch_items
        self._names = [output.name for output in signature.outputs]
        self._shapes = [output.shape for output in signature.outputs]
        if signature.has_class_weights:
            blank = np.zeros((signature.fixed_batch_items or 1, *self.input.shape), self.input.dtype)
            self.class_weights = session.run([CLASS_WEIGHTS_NAME], {self.input.name: blank})[0]
        self._run = session.run
        self._buckets = sorted(buckets, key=lambda bucket: bucket.items)

    @property
    def contract(self) -> Contract:
        """Raises InvalidModel for a model without a contract."""
        if self._contract is None:
            advice = import_advice(str(self.input.dtype), self.input.shape)
            raise InvalidModel(
                f"no contract: Convoy did not write this file (it has no {METADATA_KEY!r} in its metadata): nothing says how a "
                f"picture becomes its input{advice}"
            )
        return self._contract

    @property
    def heads(self) -> tuple[Head, ...]:
        """The answers that it gives, as the contract says; none without one."""
        return () if self._contract is None else self._contract.heads

    @cached_property
    def labels_are_numbers(self) -> bool:
        """Whether the labels are 0 to K-1, in this order, as where nobody has named the classes."""
        return all(label == str(index) for index, label in enumerate(self.labels))

    @property
    def precision(self) -> str:
        """Of the weights, as the contract says; `unknown` without one."""
        return "unknown" if self._contract is None else self._contract.precision

    def predict(self, images: NDArray[Any], with_hidden: bool = False) -> Sequence[NDArray[Any]]:
        """For [n, *input.shape] of the input's dtype, one array [n, *shape] for each of `outputs`; asked for, then of `hidden`.

        Raises:
            ValueError: an output has another shape than when the model was loaded.
        """
        outputs: Sequence[NDArray[Any]]
        if with_hidden:
            return self._with_hidden(images)
        if self._fixed_batch_items:
            outputs = self._in_fixed_batches(images, self._fixed_batch_items, self._names)
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
        """float32[n,K] for images uint8[n,H,W,C]. Only for a model with a contract: others give scores of any kind."""
        return self.predict(images)[0]

    def close(self) -> None:
        """Frees the session and its buffers. What describes the model stays; `predict` must not be called any more."""
        del self._run
        self._buckets = []

    def _in_fixed_batches(self, images: NDArray[Any], batch_items: int, names: list[str]) -> Sequence[NDArray[Any]]:
        """For a graph that takes batches of exactly `batch_items`; the last is padded."""
        count = len(images)
        padding = -count % batch_items
        if padding:
            images = np.concatenate([images, np.zeros((padding, *images.shape[1:]), images.dtype)])
        batches = [self._run(names, {self.input.name: images[at : at + batch_items]}) for at in range(0, len(images), batch_items)]
        return [np.concatenate(parts)[:count] for parts in zip(*batches, strict=True)]

    def _with_hidden(self, images: NDArray[Any]) -> Sequence[NDArray[Any]]:
        names = [*self._names, *self.hidden]
        if self._fixed_batch_items:
            return self._in_fixed_batches(images, self._fixed_batch_items, names)
        return self._run(names, {self.input.name: images})

    def _in_buckets(self, images: NDArray[Any]) -> Sequence[NDArray[Any]]:
        """In the smallest bucket that holds them; in several batches if none does."""
        largest = self._buckets[-1].items
        if len(images) <= largest:
            return next(bucket for bucket in self._buckets if bucket.items >= len(images)).run(images)
        whole = [np.empty((len(images), *spec.shape), spec.dtype) for spec in self.outputs]
        for at in range(0, len(images), largest):
            for output, part in zip(whole, self._in_buckets(images[at : at + largest]), strict=True):
                output[at : at + largest] = part
        return whole

    def measure(self, max_batch_items: int, *, thorough: bool = True) -> dict[int, float]:
        """Warms the model up and returns the seconds of a batch by its items, for powers of two up to the largest batch.

        Unless it is to be `thorough`, it takes a fraction of the time, and long batches are measured once. The largest is
        `max_batch_items` or less: what the graph takes at a time, what fits in memory, and beyond one second only what makes items
        faster.

        Raises:
            LoadError: a batch of one item fails.
        """
        sizes, _ = self.working_batches(max_batch_items)
        images = self.input.zeros(sizes[-1])
        seconds = dict.fromkeys(sizes, math.inf)
        spent = dict.fromkeys(sizes, 0.0)
        passes = 1
        min_seconds, enough_seconds = (_MIN_PASSES_SECONDS, _ENOUGH_SECONDS) if thorough else (0.0, _QUICK_SECONDS)
        while sizes and (passes < _MIN_PASSES or sum(spent.values()) < min_seconds):
            passes += 1
            for items in sizes:
                start = time.perf_counter()
                self.predict(images[:items])
                took = time.perf_counter() - start
                seconds[items] = min(seconds[items], took)
                spent[items] += took
            sizes = [items for items in sizes if spent[items] < enough_seconds]
        return seconds

    def working_batches(self, max_batch_items: int, until: float = math.inf) -> tuple[list[int], Exception | None]:
        """The batch sizes that work and are worth using, and why no larger one does. Each has been run once.

        None larger is tried after the time `until`, of `time.perf_counter`.

        Raises:
            LoadError: a batch of one item fails.
        """
        sizes: list[int] = []
        least = math.inf
        for items in batch_sizes(min(max_batch_items, self._fixed_batch_items or max_batch_items)):
            start = time.perf_counter()
            try:
                self.predict(self.input.zeros(items))
            except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
                if not sizes:
                    raise LoadError(f"the model fails on a batch of {items}, all zeros: {first_line(error)}") from None
                log.warning(
                    "%s: batches of %d items failed; the largest batch is now %d: %s",
                    self.name,
                    items,
                    sizes[-1],
                    first_line(error),
                )
                return sizes, error
            took = time.perf_counter() - start
            sizes.append(items)
            if (took > _LONG_SECONDS and took > _LONG_BATCH_GAIN * least * items) or time.perf_counter() > until:
                break
            least = min(least, took / items)
        return sizes, None


def _output_labels(contract: Contract | None) -> dict[str, tuple[str, ...]]:
    if contract is None:
        return {}
    return {head.output: head.labels for head in contract.heads} | {LOGITS_NAME: contract.labels}


def batch_sizes(max_items: int) -> list[int]:
    """The batch sizes that are warmed up and measured: powers of two, and `max_items`."""
    return sorted({1 << power for power in range(max_items.bit_length())} | {max_items})
