"""The public keys of an issuer of JWTs (a JWKS), from a file or an https URL.

A file is read with the file of `--auth`, which names it. A URL is fetched by a thread of its own: at the start, every
REFRESH_SECONDS, and soon after a JWT names a key that is not known, because issuers change their keys. No request waits for it.
"""

import json
import logging
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jwt import PyJWK

from service.access.auth_file import check_key_source, is_url
from service.errors import UserError

log = logging.getLogger(__name__)

REFRESH_SECONDS = 300.0
RETRY_SECONDS = 10.0
"""After a failure, and at least between two looks for a key that is not known."""

FETCH_SECONDS = 10.0
MAX_BYTES = 1024 * 1024
_ASYMMETRIC = ("RSA", "EC", "OKP")
_PRIVATE = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")


class Key(NamedTuple):
    """A public key of the cryptography package, and the one algorithm that it is for, if the set says so."""

    key: Any
    algorithm: str | None


Keys = Mapping[str | None, Key]
"""By `kid`; None for a key without one."""


class KeySource(Protocol):
    """Where the keys of an issuer come from."""

    keys: Keys | None
    """None until they have been read."""

    def look(self) -> bool:
        """Reads them again if that costs nothing; whether they have changed."""

    def unknown(self) -> None:
        """A JWT names a key that is not known."""

    def close(self) -> None:
        """Fetches no more."""


def parse_keys(content: bytes) -> Keys:
    """The keys of a JWKS that can sign; those of kinds that are not known are left out. Raises ValueError if none is left."""
    try:
        document = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("not a JWKS: an object with the list `keys` is expected")
    found: dict[str | None, Key] = {}
    for each in listed:
        if isinstance(each, dict) and each.get("kty") in _ASYMMETRIC and each.get("use", "sig") == "sig":
            try:
                key = PyJWK({name: value for name, value in each.items() if name not in _PRIVATE}).key
            except Exception:  # noqa: BLE001, S112 - of PyJWT and cryptography, of many kinds; none of them gives a key
                continue
            key_id = each.get("kid")
            found[key_id if isinstance(key_id, str) else None] = Key(key, each.get("alg"))
    if not found:
        raise ValueError("the JWKS has no public key that signs")
    return found


class KeyFile:
    """The keys in a file."""

    def __init__(self, path: Path) -> None:
        """Raises UserError if it cannot be read."""
        self._path = path
        self._failure = ""
        try:
            self._content = path.read_bytes()
            self.keys: Keys | None = parse_keys(self._content)
        except OSError as error:
            raise UserError(f"{str(path)!r}: {error.strerror}") from None
        except ValueError as error:
            raise UserError(f"{str(path)!r}: {error}") from None

    def look(self) -> bool:
        """See KeySource. A file that is broken or gone leaves the keys as they are."""
        try:
            content = self._path.read_bytes()
            changed = content != self._content
            if changed:
                self.keys = parse_keys(content)
                self._content = content
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if reason != self._failure:
                self._failure = reason
                log.error("the keys in %r stay as they were: %s", str(self._path), reason)
            return False
        self._failure = ""
        return changed

    def unknown(self) -> None:
        """See KeySource."""

    def close(self) -> None:
        """See KeySource."""


class KeyUrl:
    """The keys at a URL."""

    def __init__(self, url: str) -> None:
        """Fetches nothing yet: `look` starts that."""
        self.keys: Keys | None = None
        self._url = url
        self._changed = False
        self._wanted = threading.Event()
        self._closed = False
        self._failure = ""
        self._thread: threading.Thread | None = None

    def look(self) -> bool:
        """See KeySource."""
        if self._thread is None or not self._thread.is_alive():  # it may have died of a lack of memory
            thread = threading.Thread(target=self._fetch_again, name="jwks", daemon=True)
            thread.start()  # which may fail: the next look tries again
            self._thread = thread
        changed, self._changed = self._changed, False
        return changed

    def unknown(self) -> None:
        """See KeySource."""
        self._wanted.set()

    def close(self) -> None:
        """See KeySource."""
        self._closed = True
        self._wanted.set()

    def _fetch_again(self) -> None:
        while not self._closed:
            fetched = self._fetch()
            self._wanted.clear()
            if self._closed:
                return
            started = time.monotonic()
            self._wanted.wait(REFRESH_SECONDS if fetched else RETRY_SECONDS)
            while not self._closed and time.monotonic() - started < RETRY_SECONDS:  # whoever sends bad JWTs makes no more of it
                time.sleep(0.1)

    def _fetch(self) -> bool:
        try:
            with _opener.open(self._url, timeout=FETCH_SECONDS) as response:
                content: bytes = response.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES} bytes")
            keys = parse_keys(content)
        except Exception as error:  # noqa: BLE001 - whatever it is, the keys stay as they are and the next try comes
            if str(error) != self._failure:
                self._failure = str(error)
                log.error("the keys at %s could not be read, trying again every %g s: %s", self._url, RETRY_SECONDS, error)
            return False
        self._failure = ""
        if self.keys is None or keys.keys() != self.keys.keys() or content != self._content:
            self.keys, self._content, self._changed = keys, content, True
        return True

    _content = b""


class _NoPlainRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_key_source(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_opener = urllib.request.build_opener(_NoPlainRedirects())


def open_source(source: str, folder: Path) -> KeySource:
    """The keys of a source; a path is taken from `folder` on. Raises UserError."""
    return KeyUrl(source) if is_url(source) else KeyFile(folder / source)
