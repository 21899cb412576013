"""`convoy token`: tokens for the file of `convoy serve --auth`."""

import datetime as dt
import json
import os
from pathlib import Path

import click

from service.access.auth_file import MAX_NAME_CHARACTERS, new_token, parse_auth_file, token_digest
from service.errors import UserError


@click.group()
def token() -> None:
    """Make tokens for servers with --auth."""


@token.command()
@click.option("--name", required=True, help="Who is to have it: a name for logs.")
@click.option("--group", required=True, help="The group of the file whose rights it has.")
@click.option("--days", type=click.IntRange(1, 36500), help="How long it is good for.", show_default="until it is taken out")
@click.option("--auth-file", type=click.Path(path_type=Path, dir_okay=False), help="File of --auth to add it to.")
def create(name: str, group: str, days: int | None, auth_file: Path | None) -> None:
    """Make a new token.

    It is printed once, on stdout, and kept nowhere. What the file of --auth has of it, its SHA-256, goes to stderr, or into
    --auth-file: a server that runs reads that again.

    \b
    Example:
      convoy token create --name shop --group clients --auth-file auth.toml > shop.token
      convoy classify digit.png --model digits --token-file shop.token
    """  # noqa: D301 - \b keeps click from re-wrapping the lines
    for option, text in (("--name", name), ("--group", group)):
        if not text.isprintable() or not 1 <= len(text) <= MAX_NAME_CHARACTERS:
            raise UserError(f"{option} {text[:64]!r}: 1 to {MAX_NAME_CHARACTERS} printable characters are accepted")
    created = new_token()
    entry = _entry(name, group, created, days)
    if auth_file is not None:
        _append(auth_file, entry)
    click.echo(created)
    if auth_file is None:
        click.echo(entry, err=True, nl=False)


def _entry(name: str, group: str, created: str, days: int | None) -> str:
    # A string of JSON is one of TOML.
    name, group = (json.dumps(text, ensure_ascii=False) for text in (name, group))
    lines = ["[[tokens]]", f"name = {name}", f"group = {group}", f'sha256 = "{token_digest(created)}"']
    if days is not None:
        expires = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(days=days)
        lines.append(f"expires = {expires.isoformat()}")
    return "\n".join(lines) + "\n"


def _append(path: Path, entry: str) -> None:
    """Adds a token to a file. Raises UserError if the file would not be accepted with it."""
    try:
        before = path.read_bytes()
    except OSError as error:
        raise UserError(f"--auth-file {str(path)!r}: {error.strerror}: make it first, with the groups and their rights") from None
    added = ("\n" if before.endswith(b"\n") or not before else "\n\n") + entry
    try:
        parse_auth_file(path, before + added.encode())
    except UserError as error:
        raise UserError(str(error).replace("--auth ", "--auth-file ", 1)) from None
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        with os.fdopen(descriptor, "wb", buffering=0) as file:  # one write: a server never reads half of the entry
            file.write(added.encode())
    except OSError as error:
        raise UserError(f"--auth-file {str(path)!r}: {error.strerror}") from None
