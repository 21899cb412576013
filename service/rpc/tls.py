"""The server's TLS certificate: read from files, and again when they change.

Tools such as cert-manager renew certificates in place while the server runs. C core asks before each handshake whether there is a
new one; open connections keep the one that they began with.
"""

import codecs
import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from service.errors import UserError
from service.model.files import FileState, file_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tls:
    """PEM contents. With `client_ca`, only clients with a certificate signed by it may connect (mutual TLS)."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None

    def credentials(self, renewed: Callable[[], "Tls | None"] = lambda: None) -> grpc.ServerCredentials:
        """Credentials for gRPC. `renewed` is called before each handshake, by any thread; None means no new certificate."""

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            new = renewed()
            return new._configuration() if new is not None else None

        # types-grpcio lacks the None, which means no new certificate.
        return grpc.dynamic_ssl_server_credentials(self._configuration(), fetch, self.client_ca is not None)  # type: ignore[arg-type]

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)


class Renewals:
    """Hands a renewed certificate to several credentials: C core wants credentials of their own for each address."""

    def __init__(self, renewed: Callable[[], Tls | None]) -> None:
        """`renewed` returns a new certificate once, else None."""
        self._renewed = renewed
        self._latest: Tls | None = None
        self._lock = threading.Lock()

    def reader(self) -> Callable[[], Tls | None]:
        """A function that returns each new certificate once, else None."""
        last = self._latest

        def read() -> Tls | None:
            nonlocal last
            with self._lock:
                self._latest = self._renewed() or self._latest
                unchanged = self._latest is last
                last = self._latest
            return None if unchanged else last

        return read


class TlsFiles:
    """The files of a `Tls`."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._seen = self._states()

    def read(self) -> Tls:
        """Reads the files. Raises UserError if they are not PEM files that belong together."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # Without a password given, ssl would ask for that of an encrypted key on the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
            client_ca = _read_pem(self._client_ca) if self._client_ca is not None else None
            return Tls(_read_pem(self._certificate), _read_pem(self._key), client_ca)
        except OSError as error:  # ssl's errors are among them
            raise UserError(
                f"TLS: --tls-cert, --tls-key and --tls-client-ca must be PEM files that belong together: {error.strerror or error}"
            ) from None

    def renewed(self) -> Tls | None:
        """Reads the files if they have changed since the last look; None if not, or if they are invalid."""
        states = self._states()
        if states == self._seen:
            return None
        self._seen = states
        try:
            tls = self.read()
        except UserError as error:
            log.error("TLS: the changed files are invalid, the previous ones are kept: %s", error)
            return None
        log.info("TLS: the certificate has been renewed")
        return tls

    def _states(self) -> list[FileState | None]:
        return [file_state(path) for path in (self._certificate, self._key, self._client_ca) if path is not None]


def _read_pem(path: Path) -> bytes:
    """Without a byte order mark: OpenSSL ignores it, gRPC does not."""
    return path.read_bytes().removeprefix(codecs.BOM_UTF8)
