"""The columns of the output, and a picture's row."""

import re
from typing import Any

from service.client import CallFailed, Classification, ModelInfo, Prediction, RequestTooLarge
from service.errors import ConvoyError

MOST_LABELS = 100
"""How many labels of a head whose labels are true or not each by itself are asked for, to find the true ones."""

PATH, MODEL, VERSION, ERROR, SORTED_TO = "path", "model", "version", "error", "sorted_to"

_ITEM = re.compile(r"^item [0-9]+: ")

Row = list[Any]
"""Values in the order of the columns: strings, floats, lists of strings, or None."""


class Columns:
    """For a model and how many labels a picture gets: `names`, `types` (str, float or list), and rows.

    path; label, probability, label_2, probability_2 ...; the same of each further head with its name in front; `labels` of a head
    whose labels are true or not each by itself: the true ones; model, version, error. A number that is no probability is a score.
    """

    def __init__(self, info: ModelInfo, top_k: int, *, sorting: bool = False) -> None:
        self.model, self.version, self.labels = info.model, info.version, info.labels
        heads = info.heads or [{"name": "", "labels": info.labels, "threshold": None}]
        self._heads: list[tuple[str, int, bool]] = []
        self.names: list[str] = [PATH]
        self.types: list[type] = [str]
        number = "score" if info.contract is None else "probability"
        for at, head in enumerate(heads):
            multilabel = head.get("threshold") is not None
            count = min(top_k, len(head["labels"]))
            self._heads.append((head["name"] if at else "", count, multilabel))
            prefix = f"{head['name']}_" if at else ""
            for rank in range(1, count + 1):
                suffix = f"_{rank}" if rank > 1 else ""
                self._add(prefix + "label" + suffix, str)
                self._add(prefix + number + suffix, float)
            if multilabel:
                self._add(prefix + "labels", list)
        several = [len(head["labels"]) for head in heads if head.get("threshold") is not None]
        self.asked_top_k = max([top_k, *(min(MOST_LABELS, count) for count in several)])
        if sorting:
            self._add(SORTED_TO, str)
        self.sorting = sorting
        for name in (MODEL, VERSION, ERROR):
            self._add(name, str)
        self._empty = [None] * (len(self.names) - 4)

    def _add(self, name: str, kind: type) -> None:
        while name in self.names:  # a head may have any name
            name += "_"
        self.names.append(name)
        self.types.append(kind)

    def answered(self, path: str, answer: Classification, sorted_to: str | None = None) -> Row:
        """The row of a picture; `answer` has it as its only one."""
        row: Row = [path]
        for name, count, multilabel in self._heads:
            found = (answer.heads[name] if name else answer.results)[0]
            for prediction in found[:count]:
                row += (prediction.label, number_of(prediction))
            if multilabel:
                threshold = answer.thresholds[name]
                row.append([prediction.label for prediction in found if prediction.probability >= threshold])
        if self.sorting:
            row.append(sorted_to)
        row += (answer.model, answer.version, None)
        return row

    def failed(self, path: str, error: str) -> Row:
        """The row of a picture that could not be classified."""
        return [path, *self._empty, self.model, self.version, error]


def number_of(prediction: Prediction) -> float:
    """The probability or the score, as short as a float32 is exact."""
    return float(f"{prediction.probability if prediction.score is None else prediction.score:.7g}")


def reason(error: ConvoyError, *names: str) -> str:
    """What is wrong with a picture, without its name in front and without the item's number."""
    if isinstance(error, RequestTooLarge):
        return f"too large: {error.message}"
    text = _ITEM.sub("", error.message) if isinstance(error, CallFailed) else str(error)
    for name in names:
        text = text.removeprefix(f"{name}: ")
    if isinstance(error, CallFailed) and not error.field:
        text = f"{error.code}: {text}"
    return text.encode("utf-8", "backslashreplace").decode()
