"""Trials that run side by side have what is free between them."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.engine import trials
from service.engine.trial_memory import TrialMemory
from service.engine.trials import Trials
from tests.unit.engine.test_trials import LONG, eventually, trial
from tests.unit.model.graphs import FLOAT, PRODUCT, write

FREE = 1000


def test_no_more_is_taken_than_is_free_and_all_have_their_turn() -> None:
    memory, lock, taken, most, together = TrialMemory(lambda: FREE), threading.Lock(), [], [], threading.Event()

    def take(size: int) -> None:
        with memory.taken(size, lambda: None):
            with lock:
                taken.append(size)
                most.append(sum(taken))
                if len(taken) > 1:
                    together.set()
            assert size != 250 or together.wait(LONG)
            with lock:
                taken.remove(size)

    with ThreadPoolExecutor(16) as pool:
        for future in [pool.submit(take, size) for size in [250] * 8 + [500, 900, 64] * 4]:
            future.result(LONG)
    assert max(most) <= 900
    assert memory._taken == 0


def test_one_alone_has_room_and_who_waits_can_be_called_off() -> None:
    memory = TrialMemory(lambda: FREE)

    def stop() -> None:
        raise KeyboardInterrupt

    with memory.taken(5000, stop), pytest.raises(KeyboardInterrupt), memory.taken(1, stop):
        pass
    with memory.taken(5000, stop):
        assert memory._taken == 5000


def test_a_trial_waits_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "honest" / "1" / "model.onnx", [PRODUCT], {"product": FLOAT})
    memory, tried, waits = TrialMemory(lambda: 2**30), Trials(LONG, None), threading.Event()
    monkeypatch.setattr(trials, "_memory", memory)
    monkeypatch.setattr(tried, "_check_open", waits.set)
    with ThreadPoolExecutor(1) as pool:
        with memory.taken(2**30, lambda: None):
            waiting = pool.submit(tried.try_version, trial(path))
            eventually(waits.is_set)
            assert not tried._running
        assert waiting.result(LONG).max_batch_items == 64
