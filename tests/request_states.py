"""Holds every change of a request's state against the table in `service/engine/entry.py`.

Compiled code writes the state where no Python sees it: on that build only what tests themselves assign is checked.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from service.engine.entry import NEXT_STATES, RECEIVED, Entry, State


class CheckedState:
    """In place of the slot `Entry.state`: raises for an illegal transition.

    Attributes:
        violations: the illegal transitions.
        history: every state that any request went through, in order.
    """

    def __init__(self, slot: Any) -> None:
        self._slot = slot
        self.violations: list[str] = []
        self.history: list[State] = []

    def __get__(self, entry: Entry | None, owner: type[Entry]) -> Any:
        return self if entry is None else self._slot.__get__(entry, owner)

    def __set__(self, entry: Entry, state: State) -> None:
        try:
            before = self._slot.__get__(entry)
        except AttributeError:
            legal, before = state is RECEIVED, "nothing"
        else:
            legal = state in NEXT_STATES[before]
        if not legal:
            self.violations.append(f"{before} -> {state}")
            raise AssertionError(self.violations[-1])
        self.history.append(state)
        self._slot.__set__(entry, state)


@pytest.fixture
def checked_states(monkeypatch: pytest.MonkeyPatch) -> Iterator[CheckedState]:
    """Has all requests' states checked; a violation in any thread fails the test."""
    checked = CheckedState(Entry.__dict__["state"])
    monkeypatch.setattr(Entry, "state", checked)
    yield checked
    assert not checked.violations
