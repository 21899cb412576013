"""The rules of `--auth`, read again when the file changes.

A thread looks at the file every second. What it reads replaces the rules as a whole; a file that is broken, or gone, leaves them
as they are, with an error in the log. Whoever has an open stream asks to be called after each look: a stream ends when
its client is no longer known.
"""

import logging
import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter

from service.access import audit
from service.access.auth_file import AuthFile, Group, parse_auth_file
from service.access.grant import Grant
from service.errors import Refused, UserError
from service.process.vital_thread import vital_thread
from service.requests.principal import Principal

if TYPE_CHECKING:
    from service.access.jwks import KeySource
    from service.access.jwt_tokens import JwtVerifier

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0

SURFACES = ("grpc", "http")
CAUSES = ("missing", "malformed", "unknown", "expired", "forbidden")
"""Why a request was refused: no credentials, none that can be read, none that are known, known ones too late, or no right."""


class Rules:
    """What the file says, for looking up. Never changed; `Access` replaces it."""

    def __init__(self, file: AuthFile, keys: "KeySource | None") -> None:
        self.groups = file.groups
        self.jwt = _verifier(file, keys)
        # Found by a hash: how long that takes says nothing about a token that hashes otherwise, and nobody can aim at a hash.
        self.tokens = {bytes.fromhex(token.sha256): token for token in file.tokens}
        self.certificates = {
            certificate.name: (place, certificate.name, certificate.group) for place, certificate in enumerate(file.certificates)
        }
        self.remembered: dict[str, dict[Hashable, Grant]] = {surface: {} for surface in SURFACES}
        """What credentials gave: of tokens by their SHA-256. It goes with the rules that gave it."""

    def group(self, name: str) -> Group:
        """A group of the file."""
        return self.groups[name]


class Access:
    """The rules in force, and the count of what they refused. Construct, `start`, and in the end `close`."""

    def __init__(self, path: Path, registry: CollectorRegistry, why_no_secrets: str = "") -> None:
        """Reads the file. Raises UserError if it cannot be read or is not accepted.

        Args:
            path: the file.
            registry: gets the count of refusals.
            why_no_secrets: why a file with secrets is not accepted, now or when it changes; empty if it is.
        """
        self._path = path
        self._why_no_secrets = why_no_secrets
        self._failures = Counter(
            "convoy_auth_failures", "Requests refused for their credentials or rights", ("surface", "reason"), registry=registry
        )
        for surface in SURFACES:  # from the start, at 0: see observability/metrics.py
            for cause in CAUSES:
                self._failures.labels(surface, cause)
        self._content = self._read()  # what is in force
        self._failure = ""  # why what the file holds now is not
        self.file = self._parse(self._content)
        self._keys = self._open_keys(self.file)
        self.rules = Rules(self.file, self._keys)
        self._listeners: list[Callable[[], None]] = []
        self._closed = threading.Event()
        self._thread = vital_thread(self._watch, "auth-file")

    def group_of(self, principal: Principal) -> Group | None:
        """The group of a principal; None if the file has none for it."""
        return self.rules.groups.get(principal.group)

    def start(self) -> None:
        """Begins to look for changes of the file."""
        if self._keys is not None:
            self._keys.look()
        self._thread.start()

    def close(self) -> None:
        """Looks no more."""
        self._closed.set()
        if self._keys is not None:
            self._keys.close()
        if self._thread.is_alive():
            self._thread.join()

    def after_each_look(self, listener: Callable[[], None]) -> None:
        """Has `listener` called once a second, on the thread that reads the file: what it knows may have changed or expired."""
        self._listeners.append(listener)

    def refused(self, surface: str, error: Refused, principal: Principal | None, peer: str, what: str) -> None:
        """Counts a request that was refused. `peer` is the client's address, `what` the method or route."""
        self._failures.labels(surface, error.cause).inc()
        audit.refused(what, error.cause, who=principal, peer=peer)
        log.debug(
            "refused %.200s from %s (%s): %s", what, peer, "unknown" if principal is None else principal.name, error.cause
        )  # the message may hold what a client sent

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception:
                log.exception("looking at --auth failed")

    def look(self) -> None:
        """Reads the file again if it has changed."""
        try:
            content = self._read()
            if content != self._content:
                self._replace(content)
        except UserError as error:
            self._failed(str(error))
        else:
            self._failure = ""
        if self._keys is not None and self._keys.look():
            log.info("--auth %r: the issuer's keys have changed", str(self._path))
            self.rules = Rules(self.file, self._keys)  # forgets what the old keys had verified
        for listener in self._listeners:
            listener()

    def _replace(self, content: bytes) -> None:
        """Raises UserError if it is not accepted."""
        file = self._parse(content)
        keys = self._keys if _source(file) == _source(self.file) else self._open_keys(file)
        if keys is not self._keys and self._keys is not None:
            self._keys.close()
        self._content, self.file, self._keys, self.rules = content, file, keys, Rules(file, keys)
        audit.record("auth-file", "ok", tokens=len(file.tokens), groups=len(file.groups))
        log.info("--auth %r: read again: %d tokens, %d groups", str(self._path), len(file.tokens), len(file.groups))

    def _failed(self, reason: str) -> None:
        """Logs once why a new file is not used. The next look tries it again: a file that it names may come later."""
        if reason != self._failure:
            self._failure = reason
            audit.record("auth-file", f"not accepted, what it said before stays in force: {reason}")
            log.error("%s; what the file said before stays in force", reason)

    def _parse(self, content: bytes) -> AuthFile:
        file = parse_auth_file(self._path, content)
        if file.has_secrets and self._why_no_secrets:
            raise UserError(f"--auth {str(self._path)!r} {self._why_no_secrets}")
        return file

    def _open_keys(self, file: AuthFile) -> "KeySource | None":
        if file.jwt is None:
            return None
        from service.access.jwks import open_source

        try:
            return open_source(file.jwt.jwks, self._path.parent)
        except UserError as error:
            raise UserError(f"--auth {str(self._path)!r}: jwt.jwks: {error}") from None

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise UserError(f"--auth {str(self._path)!r}: {error.strerror}") from None


def _verifier(file: AuthFile, keys: "KeySource | None") -> "JwtVerifier | None":
    if file.jwt is None or keys is None:
        return None
    from service.access.jwt_tokens import JwtVerifier  # with PyJWT and cryptography, which others do without

    return JwtVerifier(file.jwt, keys, list(file.groups))


def _source(file: AuthFile) -> str | None:
    return None if file.jwt is None else file.jwt.jwks
