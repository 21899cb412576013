"""A stream without a transport."""

from collections.abc import Sequence

from service.requests.principal import Peers
from service.rpc.call import NEVER, Stream, StreamCall
from service.rpc.status import Status
from tests.integration.transport_service import RecordingMethodObserver, RecordingObserver


class RecordedStream(StreamCall):
    """Notes what is sent, and how it ends."""

    def __init__(self, method: Stream) -> None:
        observer = RecordingMethodObserver(RecordingObserver(), "bidi_stream", method.service, method.name)
        super().__init__(method, NEVER, (), observer)
        self.principal = Peers().principal(b"ipv4:127.0.0.1:40404")
        self.sent: list[bytes] = []
        self.status: Status | None = None

    def peer(self) -> str:
        return ""

    def certificate_names(self) -> Sequence[str]:
        return ()

    def _read(self) -> None:
        pass

    def _write(self, payload: bytes, *, more: bool) -> None:
        self.sent.append(payload)
        self.written()

    def _close(self, status: Status) -> None:
        self.status = status
