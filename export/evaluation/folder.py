"""Measures a model on labelled pictures through the code that serves it: from encoded pictures, via decoding and ONNX Runtime.

The pictures are read and decoded batch by batch, the next one by threads while the model computes the last: they may be more than
fit into memory. A broken picture is counted and left out. Needs neither PyTorch nor onnx.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.data.image_files import MAX_PIXELS
from export.data.labelled_pictures import LabelledPictures, pictures_of_folder
from export.evaluation.label_mapping import map_labels
from export.evaluation.measurement import batches
from export.evaluation.scores import Scores
from export.progress import OnCount, OnProgress, ignore_progress
from export.text import first_of
from service.errors import InvalidRequest, UserError, first_line
from service.model.contract import Contract, Head, InputSpec
from service.model.inference import Model
from service.model.preprocessing import decode

_LISTED = 3


@dataclass(frozen=True)
class Measured:
    """A head's answers to labelled pictures.

    Attributes:
        pictures: all, with those that are not in `scores`.
        head: whose answers these are.
        scores: N answers.
        classes: int64[all pictures], the true class of each, as an index of the head's labels; -1 for one that was left out.
        measured: int64[N], the pictures that `scores` are of, by their index.
        broken: what is wrong with each picture that could not be read or decoded, by its index.
    """

    pictures: LabelledPictures
    head: Head
    scores: Scores
    classes: NDArray[np.int64]
    measured: NDArray[np.int64]
    broken: Mapping[int, str]

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
        UserError: there is no such head, or it is multilabel; a class is none of its labels; the model fails; or no picture can be
            decoded.
    """
    chosen = choose_head(served.contract, head)
    label_of = map_labels(pictures.labels, chosen.labels, labels_map)
    classes = np.array([-1 if label is None else label for label in label_of], np.int64)[pictures.classes]  # int64[all pictures]
    wanted = np.flatnonzero(classes >= 0)
    output = [spec.name for spec in served.outputs].index(chosen.output)
    answers: list[NDArray[np.float32]] = []
    measured: list[NDArray[np.int64]] = []
    broken: dict[int, str] = {}
    for batch in _decoded(pictures, wanted, served.contract.input):
        broken |= batch.broken
        if len(batch.indices):
            answers.append(_answers(served, batch, output, pictures))
            measured.append(batch.indices)
        on_count(batch.done, len(wanted))
    if not measured:
        raise UserError(f"{pictures.name}: no picture to measure on{_reason(pictures, broken)}")
    kept = np.concatenate(measured)
    scores = Scores(chosen.labels, classes[kept], np.concatenate(answers), served.contract.temperature)
    return Measured(pictures, chosen, scores, classes, kept, broken)


def choose_head(contract: Contract, name: str) -> Head:
    """The head of this name, or the first. Raises UserError if there is none, or a folder cannot measure it."""
    head = next((head for head in contract.heads if name in ("", head.name)), None)
    if head is None:
        raise UserError(f"--head {name}: the model has {', '.join(repr(head.name) for head in contract.heads)}")
    if head.activation == "multilabel":
        others = [repr(other.name) for other in contract.heads if other.activation != "multilabel"]
        raise UserError(
            f"the model's head {head.name!r} is multilabel: a picture may have several of its labels, and a folder says one"
            + (f"; --head takes {', '.join(others)}" if others else "")
        )
    return head


class _Batch(NamedTuple):
    """Decoded pictures, [n,H,W,C], with their indices, int64[n]; the broken ones among them; and how many are done with it."""

    pixels: NDArray[Any]
    indices: NDArray[np.int64]
    broken: dict[int, str]
    done: int


def _decoded(pictures: LabelledPictures, wanted: NDArray[np.int64], spec: InputSpec) -> Iterator[_Batch]:
    """The pictures in batches; one more is decoded ahead. The threads stop when the iterator is closed, as by Ctrl-C."""
    pool = ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0))))
    try:
        ahead: list[tuple[slice, list[Future[NDArray[Any] | str]]]] = []
        for batch in batches(len(wanted), spec):
            ahead.append((batch, [pool.submit(_decode, pictures, int(index), spec) for index in wanted[batch]]))
            if len(ahead) > 1:
                yield _collected(wanted, *ahead.pop(0))
        for rest in ahead:
            yield _collected(wanted, *rest)
    finally:
        pool.shutdown(cancel_futures=True)


def _collected(wanted: NDArray[np.int64], batch: slice, tasks: Sequence["Future[NDArray[Any] | str]"]) -> _Batch:
    found = list(zip(wanted[batch], (task.result() for task in tasks), strict=True))
    good = [(index, pixels) for index, pixels in found if not isinstance(pixels, str)]
    return _Batch(
        np.stack([pixels for _, pixels in good]) if good else np.empty(0, np.uint8),
        np.array([index for index, _ in good], np.int64),
        {int(index): problem for index, problem in found if isinstance(problem, str)},
        batch.stop,
    )


def _decode(pictures: LabelledPictures, index: int, spec: InputSpec) -> NDArray[Any] | str:
    """A picture as the server decodes it, [H,W,C]; or what is wrong with it."""
    try:
        return decode(pictures.encoded(index), spec, MAX_PIXELS)
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
