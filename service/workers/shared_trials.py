"""One trial of a version for all workers: whoever comes later gets what the first was told."""

import os
import threading
import time
from concurrent.futures import Future
from pathlib import Path

from service.engine.trial import Approval, Trial, TrialsClosed, TryVersion
from service.errors import FilesChanged, LoadError, PassingFailure
from service.model.files import FileState, file_state

MAX_VERDICTS = 4096

ASKED_AGAIN_SECONDS = 10.0
"""A request that asks for a version that was refused longer ago has it tried again."""


class _Verdict:
    """`since` is when it was refused; infinite until then, and if it was approved."""

    def __init__(self) -> None:
        self.future: Future[Approval] = Future()
        self.since = float("inf")


class SharedTrials:
    """The verdicts on versions, by the states of their files and all else that a trial depends on. Thread-safe."""

    def __init__(self, try_version: TryVersion) -> None:
        self._try_version = try_version
        self._lock = threading.Lock()
        self._verdicts: dict[object, _Verdict] = {}

    def try_version(self, trial: Trial) -> Approval:
        """As `Trials.try_version`, and at most once for the same files."""
        key = _key(trial)
        with self._lock:
            verdict = self._verdicts.get(key)
            mine = verdict is None or (trial.asked and time.monotonic() - verdict.since > ASKED_AGAIN_SECONDS)
            if verdict is None or mine:
                verdict = self._verdicts[key] = _Verdict()
                while len(self._verdicts) > MAX_VERDICTS:
                    del self._verdicts[next(iter(self._verdicts))]
        if mine:
            self._fill(key, verdict, trial)
        return verdict.future.result()

    def _fill(self, key: object, verdict: _Verdict, trial: Trial) -> None:
        try:
            approval = self._try_version(trial)
        except Exception as error:  # noqa: BLE001 - all who wait get it
            lasts = isinstance(error, LoadError) and not isinstance(error, FilesChanged | PassingFailure | TrialsClosed)
            with self._lock:
                verdict.since = time.monotonic()
                if not lasts and self._verdicts.get(key) is verdict:
                    del self._verdicts[key]
            verdict.future.set_exception(error)
        else:
            verdict.future.set_result(approval)


def _key(trial: Trial) -> object:
    return trial.path, trial.labels, trial.policy.model_dump_json(), trial.provider, trial.cpus, _states(trial.path.parent)


def _states(folder: Path) -> tuple[tuple[str, FileState | None], ...]:
    """Of all files of a version."""
    paths = (Path(above, file) for above, _, files in os.walk(folder) for file in files)
    return tuple((str(path), file_state(path)) for path in sorted(paths))
