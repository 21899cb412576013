import pytest

from service import control
from service.control import Call, calls_to_replay


def test_a_reverted_call_is_not_replayed_and_a_repeated_one_only_once() -> None:
    calls: list[Call] = []
    for call in (("unload", "a"), ("unload", "b"), ("unload", "a"), ("load", "b"), ("load", "c")):
        calls = calls_to_replay(calls, call)
    assert calls == [("unload", "a")]
    assert calls_to_replay(calls, ("load", "a")) == []


def test_a_later_call_replaces_an_earlier_one_and_an_empty_name_reverts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(control.REVERTS, "close", "open")
    calls: list[Call] = [("unload", "a")]
    for call in (("open", "x", 1), ("open", "y", 2), ("open", "x", 3)):
        calls = calls_to_replay(calls, call)
    assert calls == [("unload", "a"), ("open", "y", 2), ("open", "x", 3)]
    assert calls_to_replay(calls, ("close", "")) == [("unload", "a")]
    assert calls_to_replay(calls, ("close", "y")) == [("unload", "a"), ("open", "x", 3)]
