"""Logs what is in the repository's folder at a place where no model is looked for: each once, for as long as it is there."""

import logging
from pathlib import Path

from service.model.repository_layout import misplaced

log = logging.getLogger(__name__)


class MisplacedFiles:
    """What `repository_layout.misplaced` finds in a repository's folder. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[Path, str] = {}

    def scan(self) -> None:
        """Looks again, and logs what was not there the last time."""
        try:
            found = dict(misplaced(self._folder))
        except OSError:
            return  # a folder that cannot be read is logged by those who load from it
        for path, reason in found.items():
            if self._found.get(path) != reason:
                log.warning("repository: %s is not served: %s", path, reason)
        self._found = found

    def reasons(self, name: str) -> list[str]:
        """Why what is in the repository under this name, of a model or a file, is not served."""
        return [f"{path} is not served: {reason}" for path, reason in self._found.items() if path.parts[0] == name]
