"""A server's certificate: read from the files that flags name, and again when they change.

Certificates are short-lived where something like cert-manager renews them, in place, while the server runs. C core asks before each
handshake whether there is a new one; connections that stand keep the one that they began with.
"""

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from service.errors import UserError
from service.model.files import FileState, file_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tls:
    """PEM contents. With `client_ca`, only clients with a certificate that it signed are let in (mutual TLS)."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None

    def credentials(self, renewed: Callable[[], "Tls | None"] = lambda: None) -> grpc.ServerCredentials:
        """What gRPC takes. `renewed` is asked before each handshake, by any thread, and gives None if nothing is new."""

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            new = renewed()
            return new._configuration() if new is not None else None

        # types-grpcio knows nothing of None, which says that nothing is new.
        return grpc.dynamic_ssl_server_credentials(self._configuration(), fetch, self.client_ca is not None)  # type: ignore[arg-type]

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)


class TlsFiles:
    """The files of a `Tls`."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._seen = self._states()

    def read(self) -> Tls:
        """What is in the files now. Raises UserError if that is not what it should be."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # Without a password given, a key that is encrypted would have it asked for on the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
            client_ca = self._client_ca.read_bytes() if self._client_ca is not None else None
            return Tls(self._certificate.read_bytes(), self._key.read_bytes(), client_ca)
        except OSError as error:  # ssl's errors are among them
            raise UserError(
                f"TLS: --tls-cert, --tls-key and --tls-client-ca must be PEM files that belong together: {error.strerror or error}"
            ) from None

    def renewed(self) -> Tls | None:
        """What is in the files, if they have changed since they were last looked at, and can be used."""
        states = self._states()
        if states == self._seen:
            return None
        self._seen = states
        try:
            tls = self.read()
        except UserError as error:
            log.error("the files have changed and the ones before are kept: %s", error)
            return None
        log.info("TLS: the certificate has been renewed")
        return tls

    def _states(self) -> list[FileState | None]:
        return [file_state(path) for path in (self._certificate, self._key, self._client_ca) if path is not None]
