"""The models of one folder: loaded at the start, served, and loaded again when the folder changes."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from service.engine.loader import Loader
from service.engine.model_loader import Only, TraceModelBatch
from service.engine.registry import Registry
from service.engine.served_version import ServedVersion
from service.engine.trial import TryVersion
from service.engine.watcher import Watcher
from service.errors import LoadError, NotFound, RequestError, Unavailable
from service.model.cpus import cpu_budget
from service.model.providers import Provider
from service.model.repository_layout import MODEL_FILE
from service.observability.metrics import Metrics

if TYPE_CHECKING:
    from service.model.trusted_keys import TrustedKeys

log = logging.getLogger(__name__)

STOP_SECONDS = 3.0
"""How long a server that stops waits for a model that is being loaded."""


class Repository:
    """A registry of served versions, with its loader and its watcher. Construct, `start`, and in the end `stop`.

    Attributes:
        scanned: whether the models that were in the folder at the start, and can be loaded, have been.
    """

    def __init__(
        self,
        folder: Path,
        provider: Provider,
        metrics: Metrics,
        on_change: Callable[[], None] = lambda: None,
        cpus: int | None = None,
        trace_batch: TraceModelBatch | None = None,
        policies: Path | None = None,
        load_seconds: float = 60.0,
        try_version: TryVersion | None = None,
        trusted: "TrustedKeys | None" = None,
        only: Only | None = None,
    ) -> None:
        """Loads nothing yet.

        Args:
            folder: holds `<model>/<version>/model.onnx`.
            provider: where models compute unless their policy says so.
            metrics: of the server.
            on_change: called after the set of served models has changed, by the thread that changed it.
            cpus: threads that a model may compute with; as many as this process has CPUs if not given.
            trace_batch: called for each batch that ran.
            policies: a folder; `<model>.toml` in it replaces the model's own policy.
            trusted: load only versions that one of these keys has signed.
            only: of each model, this version alone.
            load_seconds: how long to wait at most for a model to be loaded; the others do not wait for it at all.
            try_version: called before a version is loaded, which it may refuse; see `trials.py`.
        """
        self.scanned = False
        self._folder = folder
        self._on_change = on_change
        self._registry = registry = Registry(metrics, self._changed, self._not_served)
        self._loader = loader = Loader(
            folder, provider, metrics, registry, cpus or cpu_budget(), trace_batch, policies, load_seconds, try_version, trusted,
            only,
        )  # fmt: skip
        self._watcher = Watcher(folder, loader.scan_soon)
        # Callers reach the parts without a frame of this class: every request goes through `acquire` and `release`.
        self.acquire = registry.acquire
        self.release = registry.release
        self.aliases = registry.aliases
        self.routing = registry.routing
        self.splits = registry.splits
        self.acquire_for = registry.acquire_for
        self.pump = registry.pump
        self.flush = registry.flush
        self.wait_until_idle = registry.wait_until_idle
        self.wait_until_closed = registry.wait_until_closed
        self.stuck_reason = registry.stuck_reason
        self.scan = loader.scan
        self.load = loader.load
        self.unload = loader.unload
        self.index = loader.index

    def start(self) -> None:
        """Loads the models in the folder, then watches it."""
        scan_soon = self._loader.scan()
        self.scanned = True
        self._on_change()
        self._watcher.start(scan_soon=scan_soon)
        if not self.served:
            log.warning("no model is served yet; watching for %s", self._folder / "<model>" / "<version>" / MODEL_FILE)

    def load_once(self, names: Iterable[str]) -> dict[str, str]:
        """In place of `start`: loads these models, and watches nothing. Returns why some of them could not be loaded."""
        reasons = {}
        for name in names:
            try:
                self.load(name)
            except (LoadError, RequestError) as error:
                reasons[name] = str(error)
        self.scanned = True
        self._on_change()
        return reasons

    def stop(self) -> bool:
        """Stops watching and closes every model. Only when no request is running. Returns whether nothing was being loaded."""
        self._watcher.stop()
        return self._loader.stop(STOP_SECONDS)

    @property
    def served(self) -> dict[str, tuple[ServedVersion, ...]]:
        """The served versions by name of the model, the highest first."""
        return self._registry.served

    @property
    def ready(self) -> bool:
        """Whether the first scan has ended and at least one model is served."""
        return self.scanned and bool(self.served)

    @property
    def loading(self) -> bool:
        """Whether a version is being loaded."""
        return self._loader.loading

    def _changed(self) -> None:
        if self.scanned:
            self._on_change()

    def _not_served(self, name: str, version: str) -> RequestError:
        if not self.scanned:
            return Unavailable("the server is still loading its models")
        served = self.served.get(name)
        if served is None:
            return self._loader.why_not_served(name)
        expected = self._loader.why_version_not_served(name, version)
        if expected is not None:
            return expected
        known = [str(each.version) for each in served]
        known += [f"{alias} (version {number})" for alias, number in sorted(self.aliases(name).items())]
        asked = f"no version {version[:64]!r}" if version else "none of the versions that answer by default"
        return NotFound(f"model {name!r} has {asked}; served are: {', '.join(known)}")
