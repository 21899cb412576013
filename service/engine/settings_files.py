"""The settings of one model, read when their files are no longer being written.

Files that are written in place can be read as nothing, as a half, or as the beginning of the old text and the end of the new: all
of these may be valid. So changed settings count once their files have been the same for a while, and are read in one state of them.
"""

import time
from pathlib import Path

from service.engine.version_files import States, age_seconds
from service.errors import UserError
from service.model.files import file_state
from service.triton.settings import ModelSettings, read_settings, settings_paths

SETTLE_SECONDS = 1.0
"""How long the files must have been the same before what they say takes the place of earlier settings."""

_READS = 5
"""Files that change while they are read are read again, so often."""


class SettingsFiles:
    """The files of one model's settings, none of which need exist. Not thread-safe."""

    def __init__(self, repository: Path, name: str, policies: Path | None) -> None:
        """See `read_settings` for the arguments."""
        self._place = repository, name, policies
        self._states: States = ()
        self._changed = 0.0  # time.monotonic

    def states(self) -> States:
        """The states of the files now."""
        states = tuple(map(file_state, settings_paths(*self._place)))
        if states != self._states:
            gone = any(before is not None and after is None for before, after in zip(self._states, states, strict=False))
            self._states, self._changed = states, time.monotonic() - (0 if gone else age_seconds(states))
        return states

    def are_settled(self) -> bool:
        """Whether the files, as `states` last saw them, are no longer being written."""
        return time.monotonic() - self._changed >= SETTLE_SECONDS

    def read(self, *, wait: bool) -> ModelSettings | None:
        """The settings that the files had at one moment; with `wait`, None while they are being written.

        Raises UserError as `read_settings`.
        """
        for _ in range(_READS):
            states = self.states()
            if wait and not self.are_settled():
                return None
            try:
                settings = read_settings(*self._place)
            except UserError:
                if self.states() == states:
                    raise
            else:
                if self.states() == states:
                    return settings
        return read_settings(*self._place)
