"""The server's TLS certificate as C core wants it, which asks before each handshake whether there is a new one."""

import threading
from collections.abc import Callable

import grpc

from service.tls_files import Tls


def server_credentials(tls: Tls, renewed: Callable[[], Tls | None] = lambda: None) -> grpc.ServerCredentials:
    """Credentials for gRPC. `renewed` is called before each handshake, by any thread; None means no new certificate."""

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        new = renewed()
        return _configuration(new) if new is not None else None

    # types-grpcio lacks the None, which means no new certificate.
    return grpc.dynamic_ssl_server_credentials(_configuration(tls), fetch, tls.client_ca is not None)  # type: ignore[arg-type]


def _configuration(tls: Tls) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.certificate)], tls.client_ca)


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
