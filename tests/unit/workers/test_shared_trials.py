"""A version is tried once for all workers."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.engine.trial import Approval, Trial
from service.errors import FilesChanged, LoadError, PassingFailure
from service.model.model_files import Expected
from service.policy import Policy
from service.workers import shared_trials
from service.workers.shared_trials import SharedTrials

WORKERS = 3
APPROVED = Approval(Expected("digest", "graph", 7), 8)


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    (tmp_path / "model.onnx").write_bytes(b"content")
    return Trial(tmp_path / "model.onnx", None, Policy(), "cpu", 1)


class Tried:
    """Counts trials, each of which ends as it is told to, once all workers are there."""

    def __init__(self, outcome: Approval | Exception) -> None:
        self.outcome = outcome
        self.count = 0
        self.released = threading.Event()

    def __call__(self, _: Trial) -> Approval:
        self.count += 1
        assert self.released.wait(30)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_all_workers_get_the_verdict_of_one_trial(trial: Trial) -> None:
    tried = Tried(APPROVED)
    shared = SharedTrials(tried)
    with ThreadPoolExecutor(WORKERS) as pool:
        found = [pool.submit(shared.try_version, trial) for _ in range(WORKERS)]
        tried.released.set()
        assert {future.result(30) for future in found} == {APPROVED}
    assert shared.try_version(trial._replace(asked=True)) == APPROVED
    assert tried.count == 1


def test_other_files_or_another_policy_are_another_trial(trial: Trial) -> None:
    tried = Tried(APPROVED)
    tried.released.set()
    shared = SharedTrials(tried)
    shared.try_version(trial)
    shared.try_version(trial._replace(policy=Policy(max_batch_size=2)))
    (trial.path.parent / "weights").write_bytes(b"more")
    shared.try_version(trial)
    trial.path.write_bytes(b"other content")
    shared.try_version(trial)
    assert tried.count == 4


def test_a_refusal_lasts_until_a_request_asks_again(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Tried(LoadError("on purpose"))
    tried.released.set()
    shared = SharedTrials(tried)
    asked = trial._replace(asked=True)
    for given in (trial, trial, asked):
        with pytest.raises(LoadError, match="on purpose"):
            shared.try_version(given)
    assert tried.count == 1, "the request came to all workers at about the same time"
    monkeypatch.setattr(shared_trials, "ASKED_AGAIN_SECONDS", 0.0)
    tried.outcome = APPROVED
    assert shared.try_version(asked) == APPROVED
    assert tried.count == 2


@pytest.mark.parametrize("error", [FilesChanged, PassingFailure])
def test_what_may_pass_is_tried_again(error: type[LoadError], trial: Trial) -> None:
    tried = Tried(error("for now"))
    tried.released.set()
    shared = SharedTrials(tried)
    for _ in range(2):
        with pytest.raises(error):
            shared.try_version(trial)
    assert tried.count == 2


def test_verdicts_do_not_grow_without_end(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_trials, "MAX_VERDICTS", 3)
    tried = Tried(APPROVED)
    tried.released.set()
    shared = SharedTrials(tried)
    for items in range(1, 10):
        shared.try_version(trial._replace(policy=Policy(max_batch_size=items)))
    assert len(shared._verdicts) == 3
