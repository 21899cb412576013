import pytest

from service import control
from service.control import MAX_CALLS, Call, ControlPlaces, NamedLocks, calls_after_refusal, calls_to_replay
from service.errors import DeadlineExceeded, QueueFull


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


def test_a_call_that_every_worker_refuses_leaves_what_was_to_be_replayed() -> None:
    before: list[Call] = [("unload", "a"), ("register", "x", "key", 0, 1), ("unload", "b")]
    refused: Call = ("load", "a")
    meanwhile = calls_to_replay(calls_to_replay(before, refused), ("unload", "c"))
    assert sorted(calls_after_refusal(meanwhile, before, refused)) == sorted([*before, ("unload", "c")])
    again: Call = ("register", "x", "other", 0, 1)
    assert sorted(calls_after_refusal(calls_to_replay(before, again), before, again)) == sorted(before)


def test_a_lock_is_of_its_name_alone_and_is_forgotten() -> None:
    locks = NamedLocks()
    with locks.held("a", 1), locks.held("b", 1):
        with (
            pytest.raises(DeadlineExceeded, match=r"earlier control requests for 'a' are not done after 0\.01 s"),
            locks.held("a", 0.01),
        ):
            pass
        assert sorted(locks._locks) == ["a", "b"]
    assert locks._locks == {}


def test_places_are_bounded_and_given_back() -> None:
    places = ControlPlaces()
    for _ in range(MAX_CALLS):
        places.take()
    with pytest.raises(QueueFull, match="8 control requests are being carried out"), places.taken():
        pass
    places.give_back()
    with places.taken():
        pass
