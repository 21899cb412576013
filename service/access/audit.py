"""The audit log, `--audit-log`: who changed what, and who was refused. One JSON object a line, apart from the other logs.

Every process writes its own lines, each in one write at the end of the file, so that workers share it. A file that was moved away,
as logrotate does, is made anew. A disk that is full loses lines, which the log says once, and stops nothing.
"""

import datetime as dt
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import UserError
from service.requests.principal import Principal

log = logging.getLogger(__name__)

STDERR = "-"
MAX_CHARACTERS = 256
"""Of a client's text; names of models, regions and their objects are shorter."""

MAX_OUTCOME_CHARACTERS = 600

REFUSALS_A_SECOND = 20
"""More refusals than that are counted and not written: whoever floods the server must not fill the disk."""


class AuditLog:
    """A file, or stderr."""

    def __init__(self, path: Path) -> None:
        """Raises UserError if the file cannot be written."""
        self._path = None if str(path) == STDERR else path
        self._lock = threading.Lock()
        self._descriptor = -1
        self._failed = False
        try:
            self._open()
        except OSError as error:
            raise UserError(f"--audit-log {str(path)!r}: {error.strerror}") from None

    def write(self, facts: dict[str, object]) -> None:
        """Adds a line."""
        line = (json.dumps(facts) + "\n").encode()
        with self._lock:
            try:
                self._open()
                os.write(sys.stderr.fileno() if self._path is None else self._descriptor, line)
                self._failed = False
            except (OSError, ValueError) as error:
                if not self._failed:
                    log.error("--audit-log cannot be written, lines are lost: %s", getattr(error, "strerror", None) or error)
                self._failed = True

    def close(self) -> None:
        """Closes the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        """Opens the file, unless it is open and still the one with this name."""
        if self._path is None:
            return
        if self._descriptor >= 0:
            ours = os.fstat(self._descriptor)
            try:
                named = self._path.stat()
            except FileNotFoundError:
                named = None
            if named is not None and (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino):
                return
            self.close()
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


_current: AuditLog | None = None
_window = [0.0, 0.0]  # the second that refusals are counted in, and how many there were


def open_log(path: Path | None) -> None:
    """Begins to write, for this process. Raises UserError if the file cannot be written."""
    global _current
    _current = None if path is None else AuditLog(path)


def record(what: str, outcome: str, *, who: Principal | None = None, peer: str = "", model: str = "", **facts: object) -> None:
    """Writes a line, if there is an audit log. Long texts are cut: a client must not fill the disk.

    Args:
        what: what was done or asked for.
        outcome: `ok`, or why not.
        who: the client; none for what the server does by itself.
        peer: the client's address.
        model: the model's name.
        facts: more, such as `version` and `digest`.
    """
    audit = _current
    if audit is None:
        return
    line: dict[str, object] = {
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"), "what": _cut(what),
        "outcome": _cut(outcome, MAX_OUTCOME_CHARACTERS),
    }  # fmt: skip
    if who is not None:
        line |= {"who": who.name, "kind": who.kind, "group": who.group}
    facts = {"peer": peer, "model": model, "pid": os.getpid(), **facts}
    line |= {key: _cut(value) if isinstance(value, str) else value for key, value in facts.items() if value != ""}
    audit.write(line)


def _cut(text: str, characters: int = MAX_CHARACTERS) -> str:
    return text if len(text) <= characters else text[:characters] + "…"


@contextmanager
def recorded(what: str, *, who: Principal, peer: str = "", model: str = "", **facts: object) -> Iterator[None]:
    """Writes how a client's request to change something ended."""
    try:
        yield
    except Exception as error:
        record(what, f"{type(error).__name__}: {str(error)[:500]}", who=who, peer=peer, model=model, **facts)
        raise
    record(what, "ok", who=who, peer=peer, model=model, **facts)


def refused(what: str, outcome: str, *, who: Principal | None, peer: str) -> None:
    """Writes that a request was refused, unless there are too many of them."""
    if _current is None:
        return
    second = float(int(time.monotonic()))
    if _window[0] != second:
        dropped = _window[1] - REFUSALS_A_SECOND
        _window[:] = [second, 0.0]
        if dropped > 0:
            record("refusals", f"{dropped:.0f} more in one second are not listed")
    _window[1] += 1
    if _window[1] <= REFUSALS_A_SECOND:
        record(what, outcome, who=who, peer=peer)
