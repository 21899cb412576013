import pytest

from service.engine.entry import DECODING, DONE, NEXT_STATES, QUEUED, RECEIVED, RUNNING, Entry, State
from service.engine.queue import RequestQueue
from tests.request_states import CheckedState


def test_every_state_but_done_leads_to_done() -> None:
    reached = {RECEIVED}
    while more := set().union(*(NEXT_STATES[state] for state in reached)) - reached:
        reached |= more
    assert reached == set(State) == set(NEXT_STATES)
    assert [state for state in State if not NEXT_STATES[state]] == [DONE]


@pytest.mark.parametrize("path", [(DONE,), (RUNNING,), (DECODING, RUNNING), (QUEUED, DECODING), (QUEUED, DONE, RUNNING)])
def test_an_illegal_transition_is_caught(path: tuple[State, ...], checked_states: CheckedState) -> None:
    entry = Entry(1)
    for state in path[:-1]:
        entry.state = state
    with pytest.raises(AssertionError):
        entry.state = path[-1]
    assert entry.state is (path[-2] if path[1:] else RECEIVED)
    checked_states.violations.clear()


def test_the_queue_says_which_requests_wait_and_which_run() -> None:
    queue = RequestQueue(10)
    first, second = Entry(3), Entry(2)
    queue.push(first)
    queue.push(second)
    assert (first.state, second.state) == (QUEUED, QUEUED)
    queue.take(2)
    assert (first.state, second.state) == (RUNNING, QUEUED)
    queue.take(2)
    assert (first.state, second.state) == (RUNNING, RUNNING)
