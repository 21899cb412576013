"""The certificate files of TLS, for both ports: read, and read again when they change.

Tools such as cert-manager renew certificates in place while the server runs. New connections get the new one; open ones keep what
they began with.
"""

import codecs
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from service.config import ServerConfig
from service.errors import UserError
from service.model.files import FileState, file_state

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Tls:
    """PEM contents. With `client_ca`, clients with a certificate signed by it may connect (mutual TLS)."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None


class TlsFiles:
    """The files of a `Tls`."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._seen = self._states()

    @property
    def asks_clients(self) -> bool:
        """Whether clients are asked for a certificate."""
        return self._client_ca is not None

    def context(self) -> ssl.SSLContext:
        """Reads the files into a context for servers. Raises UserError as `read` does."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # Without a password given, ssl would ask for that of an encrypted key on the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
                context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # what the file has is enough, as for gRPC
        except OSError as error:  # ssl's errors are among them
            raise _error(error) from None
        return context

    def read(self) -> Tls:
        """Reads the files. Raises UserError if they are not PEM files that belong together."""
        self.context()
        try:
            client_ca = _read_pem(self._client_ca) if self._client_ca is not None else None
            return Tls(_read_pem(self._certificate), _read_pem(self._key), client_ca)
        except OSError as error:
            raise _error(error) from None

    def renewed(self) -> Tls | None:
        """Reads the files if they have changed since the last look; None if not, or if they are invalid."""
        return self._renewed(self.read)

    def renewed_context(self) -> ssl.SSLContext | None:
        """The same as `renewed`, as a context."""
        return self._renewed(self.context)

    def _renewed(self, read: Callable[[], T]) -> T | None:
        states = self._states()
        if states == self._seen:
            return None
        self._seen = states
        try:
            new = read()
        except UserError as error:
            log.error("TLS: the changed files are invalid, the previous ones are kept: %s", error)
            return None
        log.info("TLS: the certificate has been renewed")
        return new

    def _states(self) -> list[FileState | None]:
        return [file_state(path) for path in (self._certificate, self._key, self._client_ca) if path is not None]


def _read_pem(path: Path) -> bytes:
    """Without a byte order mark: OpenSSL ignores it, gRPC does not."""
    return path.read_bytes().removeprefix(codecs.BOM_UTF8)


def _error(error: OSError) -> UserError:
    return UserError(
        f"TLS: --tls-cert, --tls-key and --tls-client-ca must be PEM files that belong together: {error.strerror or error}"
    )


def tls_files(config: ServerConfig) -> TlsFiles | None:
    """The certificate files; None without TLS. Raises UserError if a flag is missing."""
    if config.tls_cert is None and config.tls_key is None and config.tls_client_ca is None:
        return None
    if config.tls_cert is None or config.tls_key is None:
        raise UserError("TLS needs both --tls-cert and --tls-key")
    return TlsFiles(config.tls_cert, config.tls_key, config.tls_client_ca)
