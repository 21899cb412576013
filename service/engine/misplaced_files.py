"""Logs what is in the repository's folder at a place where no model is looked for: each once, for as long as it is there."""

import logging
import threading
from functools import partial
from pathlib import Path

from service.model.repository_layout import misplaced
from service.triton.settings import model_file_name

log = logging.getLogger(__name__)


class MisplacedFiles:
    """What `repository_layout.misplaced` finds in a repository's folder. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model_file = partial(model_file_name, folder)
        self._scanning = threading.Lock()
        self._found: dict[Path, str] = {}

    def scan(self) -> None:
        """Looks again, and logs what was not there the last time. Does nothing while another thread looks.

        It walks the whole repository: call it without a lock that others need.
        """
        if not self._scanning.acquire(blocking=False):
            return
        try:
            self._scan()
        finally:
            self._scanning.release()

    def reasons(self, name: str) -> list[str]:
        """Why what is now in the repository under this name, of a model or a file, is not served."""
        try:
            found = misplaced(self._folder, name, self._model_file)
        except OSError:
            return []
        return [f"{path} is not served: {reason}" for path, reason in found]

    def _scan(self) -> None:
        try:
            found = dict(misplaced(self._folder, model_file=self._model_file))
        except OSError:
            return  # a folder that cannot be read is logged by those who load from it
        for path, reason in found.items():
            if self._found.get(path) != reason:
                log.warning("repository: %s is not served: %s", path, reason)
        self._found = found
