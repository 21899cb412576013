"""Watches the repository's folder and scans it again when something in it may have changed."""

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import watchfiles

log = logging.getLogger(__name__)

RESCAN_MILLISECONDS = 5000

SOON_SECONDS = 0.5
"""The time to the next scan if a scan found files that are still being written."""


class Watcher:
    """Calls `scan` on its own thread, again soon if it returned True. Construct, `start`, and in the end `stop`."""

    def __init__(self, folder: Path, scan: Callable[[], bool]) -> None:
        self._folder = folder
        self._scan = scan
        self._scan_soon = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="repository-watch", daemon=True)

    def start(self, *, scan_soon: bool = False) -> None:
        """Starts watching. With `scan_soon` there is more to find already."""
        self._scan_soon = scan_soon
        self._thread.start()

    def stop(self) -> None:
        """Stops watching, after the running scan. Does nothing if it was never started."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        for _ in itertools.chain([None] if self._scan_soon else [], self._changes()):
            try:
                while self._scan() and not self._stopping.wait(SOON_SECONDS):
                    pass
            except Exception:
                log.exception("repository: a scan failed")

    def _changes(self) -> Iterator[None]:
        """Yields when something in the folder may have changed, until `stop`."""
        # Changes inside a debounce window come together; a file that is still being written shows up again when it has grown. The
        # timeout finds changes without a notification: on network file systems, during the first scan, and a folder made anew.
        logged = ""
        while not self._stopping.is_set():
            try:
                for _ in watchfiles.watch(
                    self._folder, stop_event=self._stopping, step=100, debounce=800, rust_timeout=RESCAN_MILLISECONDS,
                    yield_on_timeout=True, raise_interrupt=False, ignore_permission_denied=True,
                ):  # fmt: skip
                    yield
            except Exception as error:  # noqa: BLE001 - such as the kernel's limit of watches
                reason = "its path is not UTF-8" if isinstance(error, UnicodeError) else str(error)
                if reason != logged:
                    logged = reason
                    log.warning("repository: cannot watch for changes, scanning every %g s: %s", RESCAN_MILLISECONDS / 1000, reason)
                if self._stopping.wait(RESCAN_MILLISECONDS / 1000):
                    return
                yield
