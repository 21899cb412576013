"""What a connection of the HTTP port needs of the server that it belongs to."""

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from service.http.wsgi import Headers, Reply

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class Owner(Protocol):
    """A server, on whose event loop its connections run. `Connection` there is `http1.Connection`."""

    max_header_bytes: int
    idle_seconds: float
    request_seconds: float
    buffer: memoryview
    no_room: str
    loop: asyncio.AbstractEventLoop

    def admit(self, environ: "WSGIEnvironment") -> int | Reply:
        """The most bytes that the request's body may have, or the reply that refuses it before its body is read."""

    def refusal(self, status: int, message: str, origin: str | None) -> Reply:
        """The reply to a request that could not be read."""

    @property
    def is_crowded(self) -> bool:
        """Whether more connections are open than there are places, so that only probes and scrapes are answered."""

    def take(self, count: int) -> bool:
        """Takes bytes for a body out of the budget, if they are there."""

    def give_back(self, count: int) -> None:
        """Gives bytes back to the budget."""

    def answer(self, connection: Any, environ: "WSGIEnvironment") -> None:
        """Has a thread answer a request, which calls `Connection.respond` on the event loop."""

    def common_headers(self) -> Headers:
        """The headers of every response."""

    def connected(self, connection: Any, transport: asyncio.BaseTransport) -> None:
        """The connection is ready; `Connection.environ` is to be set."""

    def used(self, connection: Any) -> None:
        """The connection has begun a request, or ended one."""

    def lost(self, connection: Any) -> None:
        """The connection has been closed."""
