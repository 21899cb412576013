"""`convoy classify`: classifies image files with a model of a running server."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from service.cli.connection import read_token, server_options, unreachable
from service.cli.parameters import FiniteFloat
from service.client import CallFailed, Classification, Client, Prediction, RequestTooLarge
from service.errors import FileUnreadable, UserError

IMAGES_PER_REQUEST = 64

_ITEM = re.compile(r"items\[(\d+)\]")


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path))
@server_options
@click.option(
    "--top-k", type=click.IntRange(1, 2**31 - 1), default=5, show_default=True, help="How many labels to show for an image."
)
@click.option("--timeout", type=FiniteFloat(0, 1e6, min_open=True), default=30.0, show_default=True, help="Seconds to wait.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line and image.")
def classify(
    images: tuple[Path, ...],
    model: str,
    version: str,
    server: str,
    top_k: int,
    timeout: float,
    as_json: bool,
    token_file: Path | None,
    insecure: bool,
    **tls: Any,
) -> None:
    """Classify image files with a model of a running server.

    An image that cannot be classified is reported on stderr and the others are still classified; the exit code is then 2.
    """
    failed = 0
    token = read_token(token_file)
    with Client(server, timeout_seconds=timeout, token=token, insecure=insecure, **tls) as client:
        size = 1 if len(images) == 1 else _batch_size(client, server, model, version)
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        send = partial(client.classify, model=model, version=version, top_k=top_k)
        for path, answer in _answers(send, server, batches):
            if not isinstance(answer, UserError):
                click.echo(_as_json(path, answer) if as_json else _as_text(path, answer))
            elif len(images) == 1:
                raise answer
            else:
                failed += 1
                click.echo(f"convoy: {answer}", err=True)
    if failed:
        raise UserError(f"{failed} of {len(images)} images could not be classified")


def _batch_size(client: Client, server: str, model: str, version: str) -> int:
    try:
        return min(IMAGES_PER_REQUEST, int(client.model(model, version).limits["max_request_items"]))
    except CallFailed as error:
        raise _explained(error, server, ()) from None


def _answers(
    send: Callable[[Sequence[Path]], Classification], server: str, batches: Sequence[tuple[Path, ...]]
) -> Iterator[tuple[Path, Classification | UserError]]:
    """The answer or error of each image, in order. A batch that fails because of an image is sent again image by image."""
    pending = list(batches)
    while pending:
        batch = pending.pop(0)
        try:
            answer = send(batch)
        except (CallFailed, UserError) as error:
            if not _because_of_an_image(error):
                raise _explained(error, server, batch) from None
            if len(batch) > 1:
                pending[:0] = [(path,) for path in batch]
            else:
                yield batch[0], _explained(error, server, batch)
        else:
            for path, predictions in zip(batch, answer.results, strict=True):
                yield path, replace(answer, results=[predictions])


def _as_json(path: Path, answer: Classification) -> str:
    content: dict[str, Any] = {"image": str(path), "model": answer.model, "version": answer.version}
    content["predictions"] = _fields(answer.results[0])
    if answer.heads:
        content["heads"] = {name: _fields(results[0]) for name, results in answer.heads.items()}
    if answer.thresholds:
        content["thresholds"] = answer.thresholds
    return json.dumps(content)


def _fields(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    return [{"label": found.label, "index": found.index, "probability": found.probability} for found in predictions]


def _as_text(path: Path, answer: Classification) -> str:
    lines = [f"{path}  ({answer.model} version {answer.version})", *_bars(answer.results[0], answer.thresholds.get(""))]
    for name, results in answer.heads.items():
        lines += [f" {name}:", *_bars(results[0], answer.thresholds.get(name))]
    return "\n".join(lines)


def _bars(predictions: Sequence[Prediction], threshold: float | None) -> list[str]:
    """A line for each label. With a threshold, each label is true or not by itself, and the true ones have a check mark."""
    width = max(len(p.label) for p in predictions)
    marks = ["" if threshold is None else "✓ " if p.probability >= threshold else "  " for p in predictions]
    return [
        f"  {mark}{p.label:<{width}}  {p.probability:7.2%}  {'█' * round(p.probability * 40)}"
        for mark, p in zip(marks, predictions, strict=True)
    ]


def _because_of_an_image(error: CallFailed | UserError) -> bool:
    """Whether one image made a request fail, here when it was read or in the server, so that the others can still be classified."""
    if isinstance(error, UserError):
        return isinstance(error, FileUnreadable)
    return isinstance(error, RequestTooLarge) or _item(error) is not None


def _item(error: CallFailed) -> int | None:
    """The number of the item that the server says is at fault. An error of the model alone names a field, too."""
    item = _ITEM.match(error.field) if error.message.startswith("item ") else None
    return None if item is None else int(item[1])


def _explained(error: CallFailed | UserError, server: str, batch: Sequence[Path]) -> UserError:
    """The error as the user sees it: with the file's path where the server named the item."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, RequestTooLarge):
        return UserError(f"{batch[0]}: too large: {error.message}")
    item = _item(error)
    if item is not None and item < len(batch):
        return UserError(f"{batch[item]}: {re.sub(r'^item [0-9]+: ', '', error.message)}")
    return unreachable(server, error) or UserError(str(error))
