"""A classifier without a network: the label of a picture is the first letter of its content, and its probability the second."""

from collections.abc import Iterable, Iterator

from service.bulk.columns import Columns
from service.client import CallFailed, Classification, ModelInfo, Outcome, Prediction
from service.client.images import read_file
from service.client.messages import Tensor
from service.errors import FileUnreadable

LABELS = ["ann", "bob", "../eve"]


def info(*heads: dict, version: str = "1") -> ModelInfo:
    heads = heads or ({"name": "person", "labels": LABELS, "activation": "softmax"},)
    tensor = Tensor("image", "uint8", (2, 2, 3))
    return ModelInfo(
        "people", version, [version], {}, tensor, [], list(heads[0]["labels"]), {}, "cpu", "fp32", "", [], {}, heads=list(heads)
    )


def columns(top_k: int = 1, *, sorting: bool = False) -> Columns:
    return Columns(info(), top_k, sorting=sorting)


def content(label: str, probability: float = 0.9, more: str = "") -> bytes:
    return f"{LABELS.index(label)}{probability:.1f}{more}".encode()


def answer(picture: bytes, version: str = "1") -> Classification:
    best = int(picture[:1])
    first = Prediction(LABELS[best], best, float(picture[1:4]))
    rest = [Prediction(label, index, 0.05) for index, label in enumerate(LABELS) if index != best]
    return Classification("people", version, [[first, *rest]], {})


def ask(images: Iterable[str | bytes]) -> Iterator[Outcome]:
    for index, image in enumerate(images):
        try:
            picture = image if isinstance(image, bytes) else read_file(image)
        except FileUnreadable as error:
            yield Outcome(index, image, error)
            continue
        if picture[:1].isdigit():
            yield Outcome(index, image, answer(picture))
        else:
            yield Outcome(index, image, CallFailed("INVALID_ARGUMENT", "item 0: not an image", "items[0].encoded"))
