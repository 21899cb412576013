"""What the tests of the transports themselves share."""

import pytest

from service.rpc.aio_server import AioServer
from service.rpc.completion_queue import CompletionQueueServer
from tests.integration.transport_service import Kind, RecordingObserver


@pytest.fixture(params=[AioServer, CompletionQueueServer], ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each of the two transports."""
    found: Kind = request.param
    return found


@pytest.fixture
def seen() -> RecordingObserver:
    """What a transport tells its observer."""
    return RecordingObserver()
