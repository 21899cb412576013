"""The images of a part in batches, through the code that serves them, and its classes as the model numbers them.

Needs neither PyTorch nor onnx.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from export.data.datasets import Part
from export.data.image_files import MAX_PIXELS
from export.text import first_of
from service.errors import InvalidRequest, UserError
from service.model.inference import Model
from service.model.input_spec import InputSpec
from service.model.preprocessing import decode

_BATCH_ITEMS = 256
_BATCH_BYTES = 1 << 24
_LISTED_LABELS = 10


def predict(served: Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities float32[N,K] for decoded images uint8[N,H,W,C], in batches."""
    return np.concatenate([served.probabilities(images[batch]) for batch in batches(len(images), served.contract.input)])


def batches(items: int, spec: InputSpec) -> Iterator[slice]:
    """Slices of `items` images for batches of at most 256 images and, if that is more than one, 16 MiB."""
    size = max(1, min(_BATCH_ITEMS, _BATCH_BYTES // spec.size_bytes))
    return (slice(at, min(at + size, items)) for at in range(0, items, size))


def decode_images(part: Part, batch: slice, spec: InputSpec) -> NDArray[np.uint8]:
    """Encoded images of a part as the server decodes them, uint8[n,H,W,C]. Raises UserError with the index of a broken one."""
    images = np.empty((batch.stop - batch.start, *spec.shape), np.uint8)
    for index in range(batch.start, batch.stop):
        try:
            images[index - batch.start] = decode(part.encoded(index), spec, MAX_PIXELS)
        except InvalidRequest as error:
            raise UserError(f"image {index} of the data: {error}") from None
    return images


def true_classes(part: Part, labels: tuple[str, ...], model_labels: tuple[str, ...]) -> NDArray[np.int64]:
    """The classes of a part's images, int64[N], as indices of the model's labels instead of the data's `labels`.

    Raises:
        UserError: the labels differ, or the part is empty.
    """
    check_labels(labels, model_labels)
    if not len(part):
        raise UserError("this part of the data has no images to measure on")
    return np.array([model_labels.index(label) for label in labels], np.int64)[part.labels]


def check_labels(labels: tuple[str, ...], model_labels: tuple[str, ...]) -> None:
    """Raises UserError, with the differences, unless data and model have the same labels, in any order."""
    if set(labels) == set(model_labels):
        return
    only_data = [repr(label) for label in labels if label not in model_labels]
    only_model = [repr(label) for label in model_labels if label not in labels]
    differences = [f"only the data has {first_of(only_data, _LISTED_LABELS)}"] * bool(only_data)
    differences += [f"only the model has {first_of(only_model, _LISTED_LABELS)}"] * bool(only_model)
    raise UserError(f"the data's {len(labels)} labels are not the model's {len(model_labels)}: {'; '.join(differences)}")
