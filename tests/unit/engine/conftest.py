"""All requests of these tests have their states checked."""

import pytest

from tests.request_states import CheckedState


@pytest.fixture(autouse=True)
def _check_states(checked_states: CheckedState) -> None:
    pass
