"""What `convoy classify` prints of an answer: bars for people, JSON for programs."""

import json
from collections.abc import Sequence
from typing import Any

import click

from service.bulk.pictures import Picture
from service.client import Classification, Prediction


class Printed:
    """Prints the answers to stdout and the errors to stderr, and counts both."""

    def __init__(self, *, as_json: bool) -> None:
        self._text = json_text if as_json else bar_text
        self.classified = 0
        self.errors = 0

    def answered(self, picture: Picture, answer: Classification) -> None:
        """Prints an answer."""
        self.classified += 1
        click.echo(self._text(picture.path or picture.name, answer))

    def failed(self, picture: Picture, error: str) -> None:
        """Prints an error."""
        self.errors += 1
        print_error(picture, error)


def print_error(picture: Picture, error: str) -> None:
    """A line on stderr."""
    click.echo(f"convoy: {picture.path or picture.name}: {error}", err=True)


def json_text(name: str, answer: Classification) -> str:
    """One JSON object on a line."""
    content: dict[str, Any] = {"image": name, "model": answer.model, "version": answer.version}
    content["predictions"] = _fields(answer.results[0])
    if answer.heads:
        content["heads"] = {head: _fields(results[0]) for head, results in answer.heads.items()}
    if answer.thresholds:
        content["thresholds"] = answer.thresholds
    return json.dumps(content)


def _fields(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    return [{"label": found.label, "index": found.index, "probability": found.probability} for found in predictions]


def bar_text(name: str, answer: Classification) -> str:
    """A line for the image and one for each label."""
    lines = [f"{name}  ({answer.model} version {answer.version})", *_bars(answer.results[0], answer.thresholds.get(""))]
    for head, results in answer.heads.items():
        lines += [f" {head}:", *_bars(results[0], answer.thresholds.get(head))]
    return "\n".join(lines)


def _bars(predictions: Sequence[Prediction], threshold: float | None) -> list[str]:
    """A line for each label. With a threshold, each label is true or not by itself, and the true ones have a check mark."""
    width = max(len(p.label) for p in predictions)
    marks = ["" if threshold is None else "✓ " if p.probability >= threshold else "  " for p in predictions]
    return [
        f"  {mark}{p.label:<{width}}  {p.probability:7.2%}  {'█' * round(p.probability * 40)}"
        for mark, p in zip(marks, predictions, strict=True)
    ]
