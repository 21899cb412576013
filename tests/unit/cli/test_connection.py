"""What the commands print when no server can be reached."""

import pytest

from service.cli.connection import unreachable
from service.client import CallFailed


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        ("Connection refused", "no server answers at unix:/s: start one with"),
        ("No such file or directory", "no server answers at unix:/s: start one with"),
        ("Permission denied", "cannot connect to the server at unix:/s: permission denied"),
        ("Connection reset", "cannot connect to a gRPC server at unix:/s (does only one end use TLS?): "),
    ],
)
def test_the_cause_is_named(cause: str, expected: str) -> None:
    message = f"connections to all backends failing; last error: UNKNOWN: unix:/s: connect failed: addr: unix:/s error: {cause}"
    assert str(unreachable("unix:/s", CallFailed("UNAVAILABLE", message))).startswith(expected)
    assert unreachable("unix:/s", CallFailed("UNAVAILABLE", "the model is loading")) is None
