"""The files of each version in a repository: which they are, whether they have changed, and whether they are still being written.

A version is `model.onnx` and the files of weights that it names; where signatures are asked for, all files in its folder. An ONNX
file that is written to half is refused when it is parsed; weights are only numbers, so a file of them that is still being filled
would be served as it is. Therefore a version that has such files is loaded only once none of its files has changed for a while; and
any version whose files changed while they were read.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

from service.model.files import FileState, file_state
from service.model.model_files import weights_files

SETTLE_SECONDS = 2.0
"""How long the files of a version that waits must have been the same."""

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
            self._seen[path] = _Seen(weights, states, time.monotonic() - age_seconds(states), bool(weights))
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


def _other_files(path: Path) -> tuple[Path, ...]:
    """The files in a version's folder, and below it, but the model file.

    A link is one of them unless it leads to a folder. What cannot be looked at is left out: whoever reads it hears why.
    """
    found = (Path(folder, file) for folder, _, files in os.walk(path.parent) for file in files)
    return tuple(sorted(each for each in found if each != path))


def age_seconds(states: States) -> float:
    """Seconds since the last change of these files, by the clock that times of files are in."""
    latest = max((state[1] for state in states if state is not None), default=0)
    return max(0.0, time.time() - latest / 1e9)
