"""The files of each version in a repository: which they are, whether they have changed, and whether they are still being written.

A version is `model.onnx` and the files of weights that it names; where signatures are asked for, all files in its folder. An ONNX
file that is written to half is refused when it is parsed; weights are only numbers, so a file of them that is still being filled
would be served as it is. Therefore a version that has such files is loaded only once none of its files has changed for a while; and
any version whose files changed while they were read.

The same is known of a model's settings. Settings that are written in place can be read as nothing, as a half, or as
the beginning of the old ones and the end of the new: all of these may be valid.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from service.model.files import FileState, file_state
from service.model.model_files import weights_files

SETTLE_SECONDS = 2.0
"""How long the files of a version that waits must have been the same."""

SETTINGS_SETTLE_SECONDS = 1.0
"""How long the files of settings must have been the same before they take the place of earlier ones."""

States = tuple[FileState | None, ...]
"""Of the model file and of its files of weights; None for a file that is missing."""


class _Seen(NamedTuple):
    weights: tuple[Path, ...]
    states: States
    changed: float  # time.monotonic
    waits: bool


class VersionFiles:
    """What is known of the files of versions, by the path of their model file. Not thread-safe."""

    def __init__(self, *, whole_folders: bool = False) -> None:
        """With `whole_folders` every file in a version's folder is one of the version, and no file is read to find the others."""
        self._find = _other_files if whole_folders else weights_files
        self._whole_folders = whole_folders
        self._seen: dict[Path, _Seen] = {}
        self._asked: set[Path] = set()  # since the last `forget_others`

    def states(self, path: Path) -> States:
        """The states of a version's files now. The model file is read only if it has changed."""
        self._asked.add(path)
        graph, seen = file_state(path), self._seen.get(path)
        known = seen is not None and seen.states[0] == graph and not self._whole_folders
        weights = seen.weights if seen is not None and known else self._find(path)
        states = (graph, *map(file_state, weights))
        if seen is None:
            self._seen[path] = _Seen(weights, states, time.monotonic() - _age_seconds(states), bool(weights))
        elif seen.states != states:
            self._seen[path] = _Seen(weights, states, time.monotonic(), seen.waits or bool(weights))
        return states

    def are_settled(self, path: Path) -> bool:
        """Whether a version can be read: as `states` last saw its files, they are no longer being written."""
        seen = self._seen[path]
        return not seen.waits or time.monotonic() - seen.changed >= SETTLE_SECONDS

    def changed_while_read(self, path: Path) -> None:
        """Notes that a version's files are being written, so that it is not read again and again."""
        self._seen[path] = self._seen[path]._replace(changed=time.monotonic(), waits=True)

    def forget_others(self) -> None:
        """Forgets the versions that were not asked for since the last time."""
        self._seen = {path: seen for path, seen in self._seen.items() if path in self._asked}
        self._asked.clear()


class SettingsFiles:
    """The files of one model's settings, none of which need exist. Not thread-safe."""

    def __init__(self) -> None:
        self._states: States = ()
        self._changed = 0.0  # time.monotonic

    def states(self, paths: Iterable[Path]) -> States:
        """The states of the files now."""
        states = tuple(map(file_state, paths))
        if states != self._states:
            gone = any(before is not None and after is None for before, after in zip(self._states, states, strict=False))
            self._states, self._changed = states, time.monotonic() - (0 if gone else _age_seconds(states))
        return states

    def are_settled(self) -> bool:
        """Whether the files, as `states` last saw them, are no longer being written."""
        return time.monotonic() - self._changed >= SETTINGS_SETTLE_SECONDS


def _other_files(path: Path) -> tuple[Path, ...]:
    """The files in a version's folder, and below it, but the model file.

    A link is one of them unless it leads to a folder. What cannot be looked at is left out: whoever reads it hears why.
    """
    found = (Path(folder, file) for folder, _, files in os.walk(path.parent) for file in files)
    return tuple(sorted(each for each in found if each != path))


def _age_seconds(states: States) -> float:
    """Seconds since the last change of these files, by the clock that times of files are in."""
    latest = max((state[1] for state in states if state is not None), default=0)
    return max(0.0, time.time() - latest / 1e9)
