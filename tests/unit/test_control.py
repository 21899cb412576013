import pytest

from service import control
from service.control import Call, remember


def test_what_was_undone_is_forgotten_and_what_stands_stands_once() -> None:
    calls: list[Call] = []
    for call in (("unload", "a"), ("unload", "b"), ("unload", "a"), ("load", "b"), ("load", "c")):
        calls = remember(calls, call)
    assert calls == [("unload", "a")]
    assert remember(calls, ("load", "a")) == []


def test_a_later_call_takes_the_place_of_an_earlier_and_an_empty_name_undoes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(control.UNDOES, "close", "open")
    calls: list[Call] = [("unload", "a")]
    for call in (("open", "x", 1), ("open", "y", 2), ("open", "x", 3)):
        calls = remember(calls, call)
    assert calls == [("unload", "a"), ("open", "y", 2), ("open", "x", 3)]
    assert remember(calls, ("close", "")) == [("unload", "a")]
    assert remember(calls, ("close", "y")) == [("unload", "a"), ("open", "x", 3)]
