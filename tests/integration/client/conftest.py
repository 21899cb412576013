"""What the tests of the client share."""

import pytest


@pytest.fixture
def transport_name() -> str:
    """The client knows nothing of the server's transport: once is enough."""
    return "auto"
