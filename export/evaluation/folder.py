"""Measures a model on labelled pictures through the code that serves it: from encoded pictures, via decoding and ONNX Runtime.

The pictures are read and decoded batch by batch, the next one by threads while the model computes the last: they may be more than
fit into memory. A broken picture is counted and left out. Needs neither PyTorch nor onnx.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from export.data.image_files import MAX_PIXELS
from export.data.labelled_pictures import LabelledPictures, pictures_of_folder
from export.evaluation.label_mapping import map_labels
from export.evaluation.measurement import batches
from export.evaluation.multilabel import MultilabelScores
from export.evaluation.scores import Scores
from export.progress import OnCount, OnProgress, ignore_progress
from export.text import first_of
from service.errors import InvalidRequest, UserError, first_line
from service.model.contract import Contract, Head
from service.model.inference import Model
from service.model.input_spec import InputSpec
from service.model.preprocessing import decode

_LISTED = 3


@dataclass(frozen=True)
class Measured:
    """A head's answers to labelled pictures: N of them, as some may be broken or left out.

    Attributes:
        pictures: all.
        head: whose answers these are.
        classes: int64[all pictures], the true class of each, as an index of the head's labels; -1 for one that was left out.
        measured: int64[N], the pictures that were answered, by their index.
        probabilities: float32[N,K], the answers.
        broken: what is wrong with each picture that could not be read or decoded, by its index.
        digests: of the N files; empty unless a picture may have several labels.
        temperature: of the model's calibration.
    """

    pictures: LabelledPictures
    head: Head
    classes: NDArray[np.int64]
    measured: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    broken: Mapping[int, str]
    digests: tuple[bytes, ...] = ()
    temperature: float = 1.0

    @cached_property
    def scores(self) -> Scores:
        """Of a head that has one label for a picture."""
        return Scores(self.head.labels, self.classes[self.measured], self.probabilities, self.temperature)

    @cached_property
    def multilabel_scores(self) -> MultilabelScores:
        """Of a head that may have several. A picture has the labels of all folders that hold the same file, and no other.

        Labels without a folder are not measured: nothing says which pictures have them.
        """
        assert self.head.threshold is not None  # noqa: S101 - validated with the contract
        known, column = np.unique(self.classes[self.measured], return_inverse=True)
        rows: dict[bytes, int] = {}
        row = np.array([rows.setdefault(digest, len(rows)) for digest in self.digests])
        truth = np.zeros((len(rows), len(known)), np.bool_)
        truth[row, column] = True
        first = np.unique(row, return_index=True)[1]
        labels = tuple(self.head.labels[index] for index in known)
        return MultilabelScores(labels, truth, self.probabilities[np.ix_(first, known)], self.head.threshold)

    def encoded(self, answer: int) -> bytes:
        """The picture of an answer."""
        return self.pictures.encoded(int(self.measured[answer]))

    def label(self, index: int) -> str:
        """The true label of a picture, as the model has it."""
        label: str = self.head.labels[self.classes[index]]
        return label

    @property
    def left_out(self) -> list[str]:
        """A line for each file that was not measured."""
        return [*self.pictures.skipped, *(f"{self.pictures.path(index)}: {problem}" for index, problem in self.broken.items())]


def measure_folder(
    served: Model,
    folder: Path,
    *,
    head: str = "",
    labels_map: Mapping[str, str] | None = None,
    part: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Measured:
    """Measures a loaded model on a folder of class folders, as `pictures_of_folder` reads it, and `measure` measures it."""
    pictures = pictures_of_folder(folder, served.contract, part, on_progress)
    return measure(served, pictures, head, labels_map, lambda done, total: on_progress("measuring", done, total))


def measure(
    served: Model,
    pictures: LabelledPictures,
    head: str = "",
    labels_map: Mapping[str, str] | None = None,
    on_count: OnCount = ignore_progress,
) -> Measured:
    """Classifies every picture.

    Args:
        served: a loaded model with a contract.
        pictures: with any of the model's labels.
        head: the name of one of the model's; by default its first.
        labels_map: the model's label for a class of the data; others go by their name, as in `map_labels`.
        on_count: called with the number of pictures after each batch.

    Raises:
        UserError: there is no such head; a class is none of its labels; the model fails; or no picture can be
            decoded.
    """
    chosen = choose_head(served.contract, head)
    label_of = map_labels(pictures.labels, chosen.labels, labels_map)
    classes = np.array([-1 if label is None else label for label in label_of], np.int64)[pictures.classes]  # int64[all pictures]
    wanted = np.flatnonzero(classes >= 0)
    output = [spec.name for spec in served.outputs].index(chosen.output)
    probabilities = np.empty((len(wanted), len(chosen.labels)), np.float32)
    measured = np.empty(len(wanted), np.int64)
    digests: list[bytes] = []
    broken: dict[int, str] = {}
    items = 0
    for batch in _decoded(pictures, wanted, served.contract.input, with_digests=chosen.activation == "multilabel"):
        broken |= batch.broken
        digests += batch.digests
        if more := len(batch.indices):
            probabilities[items : items + more] = _answers(served, batch, output, pictures)
            measured[items : items + more] = batch.indices
            items += more
        on_count(batch.done, len(wanted))
    if not items:
        raise UserError(f"{pictures.name}: no picture to measure on{_reason(pictures, broken)}")
    return Measured(
        pictures, chosen, classes, measured[:items], probabilities[:items], broken, tuple(digests), served.contract.temperature
    )


def choose_head(contract: Contract, name: str) -> Head:
    """The head of this name, or the first. Raises UserError if there is none."""
    head = next((head for head in contract.heads if name in ("", head.name)), None)
    if head is None:
        raise UserError(f"--head {name}: the model has {', '.join(repr(head.name) for head in contract.heads)}")
    return head


class _Batch(NamedTuple):
    """Decoded pictures, [n,H,W,C], with their indices, int64[n]; the broken ones among them; and how many are done with it."""

    pixels: NDArray[Any]
    indices: NDArray[np.int64]
    digests: list[bytes]
    broken: dict[int, str]
    done: int


class _Decoded(NamedTuple):
    pixels: NDArray[Any]
    digest: bytes


_Task: TypeAlias = "Future[_Decoded | str]"


def _decoded(pictures: LabelledPictures, wanted: NDArray[np.int64], spec: InputSpec, *, with_digests: bool) -> Iterator[_Batch]:
    """The pictures in batches; one more is decoded ahead. The threads stop when the iterator is closed, as by Ctrl-C."""
    pool = ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0))))
    decode_one = partial(_decode, pictures, spec=spec, with_digest=with_digests)
    try:
        ahead: list[tuple[slice, list[_Task]]] = []
        for batch in batches(len(wanted), spec):
            ahead.append((batch, [pool.submit(decode_one, int(index)) for index in wanted[batch]]))
            if len(ahead) > 1:
                yield _collected(wanted, *ahead.pop(0))
        for rest in ahead:
            yield _collected(wanted, *rest)
    finally:
        pool.shutdown(cancel_futures=True)


def _collected(wanted: NDArray[np.int64], batch: slice, tasks: Sequence[_Task]) -> _Batch:
    found = list(zip(wanted[batch], (task.result() for task in tasks), strict=True))
    good = [(index, picture) for index, picture in found if not isinstance(picture, str)]
    return _Batch(
        np.stack([picture.pixels for _, picture in good]) if good else np.empty(0, np.uint8),
        np.array([index for index, _ in good], np.int64),
        [picture.digest for _, picture in good if picture.digest],
        {int(index): problem for index, problem in found if isinstance(problem, str)},
        batch.stop,
    )


def _decode(pictures: LabelledPictures, index: int, *, spec: InputSpec, with_digest: bool) -> _Decoded | str:
    """A picture as the server decodes it, [H,W,C], and its file's SHA-256 if wanted; or what is wrong with it."""
    try:
        encoded = pictures.encoded(index)
        return _Decoded(decode(encoded, spec, MAX_PIXELS), hashlib.sha256(encoded).digest() if with_digest else b"")
    except OSError as error:
        return error.strerror or str(error)
    except (InvalidRequest, UserError) as error:
        return str(error)


def _answers(served: Model, batch: _Batch, output: int, pictures: LabelledPictures) -> NDArray[np.float32]:
    """Probabilities, float32[n,K]. Raises UserError if the model fails, or gives what is no number."""
    try:
        answers: NDArray[np.float32] = served.predict(batch.pixels)[output]
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
        raise UserError(f"the model fails on {pictures.path(int(batch.indices[0]))} or after it: {first_line(error)}") from None
    if not np.isfinite(answers).all():
        first = batch.indices[np.flatnonzero(~np.isfinite(answers).all(axis=1))[0]]
        raise UserError(f"the model's answer to {pictures.path(int(first))} is not a number")
    return answers


def _reason(pictures: LabelledPictures, broken: Mapping[int, str]) -> str:
    lines = [f"{pictures.path(index)}: {problem}" for index, problem in broken.items()]
    return f"; left out: {first_of(lines, _LISTED)}" if lines else ""
