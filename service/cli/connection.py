"""What the commands that call a server share: options for server and model, and the error for a server that cannot be reached."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from service.client import CallFailed
from service.client.connection import checked_token
from service.client.http_proxy import THROUGH_PROXY
from service.client.images import read_file
from service.errors import FileUnreadable, UserError

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Servers(click.ParamType[str]):
    """An address; several stand one after the other, or with commas. In a variable a path may have spaces."""

    name = "server"

    def split_envvar_value(self, rv: str) -> list[str]:
        """The whole value."""
        return [rv]

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002 - click's
        """As it is: the client checks it."""
        return value


def server_options(command: _Command, *, model_required: bool = True) -> _Command:
    """Adds the options that say which server, which model and who calls, as arguments of the same names."""
    for option in reversed(
        (
            click.option("--model", required=model_required, default=None if model_required else "", help="Name of the model."),
            click.option("--version", default="", show_default="the server's", help="Version of the model, or an alias."),
            click.option("--server", default=["127.0.0.1:8001"], show_default=True, envvar="CONVOY_SERVER",
                         metavar="HOST:PORT", type=_Servers(), multiple=True, callback=lambda _, __, value: ",".join(value),
                         help="Address of the server, or unix:PATH; repeated, several IP addresses or several unix:PATH."),
            click.option("--tls-ca", type=click.Path(path_type=Path),
                         help="CA (PEM) that signed the server's certificate; turns TLS on."),
            click.option("--tls-cert", type=click.Path(path_type=Path), help="Client certificate (PEM), for mutual TLS."),
            click.option("--tls-key", type=click.Path(path_type=Path), help="Private key of the client certificate (PEM)."),
            click.option("--token-file", type=click.Path(path_type=Path), show_default="CONVOY_TOKEN, the token itself",
                         help="File with a token for a server with --auth."),
            click.option("--insecure", is_flag=True, help="Send the token to other machines without TLS too."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def read_token(path: Path | None) -> str | None:
    """The token in a file, else in the environment's CONVOY_TOKEN; None if there is neither. Raises UserError."""
    if path is None:
        return os.environ.get("CONVOY_TOKEN") or None
    try:
        return checked_token(read_file(path).decode("ascii", "replace").strip())
    except UserError as error:
        raise UserError(str(error) if isinstance(error, FileUnreadable) else f"--token-file {str(path)!r}: {error}") from None


def unreachable(server: str, error: CallFailed) -> UserError | None:
    """What to print for a call that failed because no server could be reached, or let it in; None for another reason."""
    if error.code == "UNAUTHENTICATED":
        return UserError(f"the server at {server} does not know who calls: {error.message} (--token-file, CONVOY_TOKEN)")
    if THROUGH_PROXY in error.message:
        return UserError(error.message)
    if error.code != "UNAVAILABLE" or "connect" not in error.message.lower():
        return None
    cause = error.message.rpartition("last error: ")[2]
    if "Connection refused" in cause or "No such file or directory" in cause:
        return UserError(f"no server answers at {server}: start one with `convoy serve`, or name it with --server HOST:PORT")
    if "Permission denied" in cause:
        return UserError(f"cannot connect to the server at {server}: permission denied")
    return UserError(f"cannot connect to a gRPC server at {server} (does only one end use TLS?): {cause}")
