"""What the commands that call a server share: options for server and model, and the error for a server that cannot be reached."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from service.client import CallFailed
from service.client.http_proxy import THROUGH_PROXY
from service.errors import UserError

_Command = TypeVar("_Command", bound=Callable[..., Any])


def server_options(command: _Command) -> _Command:
    """Adds --model, --version, --server, --tls-ca, --tls-cert and --tls-key, as arguments of the same names."""
    for option in reversed(
        (
            click.option("--model", required=True, help="Name of the model."),
            click.option("--version", default="", show_default="the server's", help="Version of the model, or an alias."),
            click.option("--server", default="127.0.0.1:8001", show_default=True, envvar="CONVOY_SERVER", metavar="HOST:PORT",
                         help="Address of the server, or unix:PATH; several IP addresses or several unix:PATH by commas."),
            click.option("--tls-ca", type=click.Path(path_type=Path),
                         help="CA (PEM) that signed the server's certificate; turns TLS on."),
            click.option("--tls-cert", type=click.Path(path_type=Path), help="Client certificate (PEM), for mutual TLS."),
            click.option("--tls-key", type=click.Path(path_type=Path), help="Private key of the client certificate (PEM)."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def unreachable(server: str, error: CallFailed) -> UserError | None:
    """What to print for a call that failed because no server could be reached; None if it failed for another reason."""
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
