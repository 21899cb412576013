"""`convoy classify`."""

import json
import re
from pathlib import Path
from typing import Any

import click

from service.cli.parameters import FiniteFloat
from service.errors import ConvoyError, FileUnreadable, UserError

IMAGES_A_REQUEST = 64


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="Name of the model.")
@click.option("--version", default="", help="Version of the model, or an alias; the server's default if not given.")
@click.option(
    "--server",
    default="127.0.0.1:8001",
    show_default=True,
    envvar="CONVOY_SERVER",
    metavar="HOST:PORT",
    help="The server.",
)
@click.option(
    "--top-k", type=click.IntRange(1, 2**31 - 1), default=5, show_default=True, help="How many labels to show for an image."
)
@click.option("--timeout", type=FiniteFloat(0, 1e6, min_open=True), default=30.0, show_default=True, help="Seconds to wait.")
@click.option(
    "--tls-ca", type=click.Path(path_type=Path), help="CA (PEM) that the server's certificate must come from; turns TLS on."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Client certificate (PEM), for mutual TLS.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Private key of the client certificate (PEM).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, one line an image.")
def classify(
    images: tuple[Path, ...], model: str, version: str, server: str, top_k: int, timeout: float, as_json: bool, **tls: Path | None
) -> None:
    """Classify image files with a model of a running server.

    An image that cannot be classified is named, the others are classified all the same, and the exit code is 2.
    """
    from service.client import CallFailed, Client

    failed = 0
    with Client(server, timeout_seconds=timeout, **tls) as client:
        most = 1
        if len(images) > 1:
            try:
                most = min(IMAGES_A_REQUEST, int(client.model(model, version).limits["max_request_items"]))
            except CallFailed as error:
                raise _explained(error, server, images) from None
        requests = [images[start : start + most] for start in range(0, len(images), most)]
        while requests:
            some = requests.pop(0)
            try:
                answer = client.classify(some, model, version=version, top_k=top_k)
            except (CallFailed, UserError) as error:
                explained = _explained(error, server, some)
                if len(images) == 1 or not _of_an_image(error):
                    raise explained from None
                if len(some) > 1:  # one by one, none suffers for another
                    requests = [(path,) for path in some] + requests
                else:
                    failed += 1
                    click.echo(f"convoy: {explained}", err=True)
                continue
            for path, predictions in zip(some, answer.results, strict=True):
                _show(path, answer, predictions, as_json)
    if failed:
        raise UserError(f"{failed} of {len(images)} images could not be classified")


def _show(path: Path, answer: Any, predictions: Any, as_json: bool) -> None:
    if as_json:
        found = [{"label": p.label, "index": p.index, "probability": p.probability} for p in predictions]
        click.echo(json.dumps({"image": str(path), "model": answer.model, "version": answer.version, "predictions": found}))
        return
    click.echo(f"{path}  ({answer.model} version {answer.version})")
    width = max(len(p.label) for p in predictions)
    for p in predictions:
        click.echo(f"  {p.label:<{width}}  {p.probability:7.2%}  {'█' * round(p.probability * 40)}")


_ITEM = re.compile(r"items\[(\d+)\]")


def _too_large(error: Any) -> bool:
    return error.code == "RESOURCE_EXHAUSTED" and "the server takes at most" in error.message


def _of_an_image(error: Any) -> bool:
    """Whether it is a picture's fault that a request failed: here, where it is read, or with the server."""
    if isinstance(error, UserError):
        return isinstance(error, FileUnreadable)
    return _too_large(error) or (_ITEM.match(error.field) is not None and error.message.startswith("item "))


def _explained(error: Any, server: str, images: tuple[Path, ...]) -> ConvoyError:
    """An error that names the file, where the server named the item."""
    if isinstance(error, UserError):
        return error
    from service.client.messages import no_server

    unanswered = no_server(server, error)
    if unanswered is not None:
        return unanswered
    if _too_large(error):
        return UserError(f"{images[0]}: too large: {error.message}")
    item = _ITEM.match(error.field)
    if item is not None and int(item[1]) < len(images):
        return UserError(f"{images[int(item[1])]}: {re.sub(r'^item [0-9]+: ', '', error.message)}")
    return UserError(str(error))
