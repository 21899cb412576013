"""Loads the models of a repository's folder, several side by side, and takes them out of service.

What each model needs is decided by its `ModelLoader`. Here is when: after a scan, or because a request asks for it. Each model
has its turn (`turns.py`): one that takes long to load, or for ever, keeps no other from being loaded, unloaded or scanned, and
whoever waits for it does so for a limited time.
"""

import concurrent.futures
import logging
import threading
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.engine.misplaced_files import MisplacedFiles
from service.engine.model_loader import ModelLoader, Only, Surroundings, TraceModelBatch, VersionState
from service.engine.registry import Registry
from service.engine.routing import Routing
from service.engine.served_version import ServedVersion
from service.engine.trial import TryVersion
from service.engine.turns import Turns
from service.errors import DeadlineExceeded, LoadError, NotFound, RequestError, Unavailable
from service.model.providers import Provider
from service.model.repository_layout import model_names
from service.observability.metrics import Metrics

if TYPE_CHECKING:
    from service.model.trusted_keys import TrustedKeys

log = logging.getLogger(__name__)

MAX_SIDE_BY_SIDE = 8

WATCH_SECONDS = 1.0
"""How long a scan that must not wait gives the models before it says that some are not done."""

_TEND_SECONDS = 0.5


class Loader:
    """Keeps the registry at what the folder holds. Thread-safe."""

    def __init__(
        self,
        folder: Path,
        provider: Provider,
        metrics: Metrics,
        registry: Registry,
        cpus: int,
        trace_batch: TraceModelBatch | None,
        policies: Path | None,
        load_seconds: float,
        try_version: TryVersion | None = None,
        trusted: "TrustedKeys | None" = None,
        only: Only | None = None,
    ) -> None:
        """A model computes with at most `cpus` threads. `<model>.toml` in the folder `policies` replaces the model's own policy.

        Nobody waits longer than `load_seconds` for a model. `try_version` is called before a version is loaded. With `trusted`,
        only versions that one of these keys signed are loaded. With `only`, no other version of a model is.
        """
        self._folder = folder
        self._registry = registry
        self._load_seconds = load_seconds
        self._surroundings = Surroundings(
            folder, provider, metrics, registry, cpus, trace_batch, policies, self._publish, try_version, trusted, only,
        )  # fmt: skip
        self._lock = threading.Lock()  # of what follows; no file is looked at while it is held
        self._models: dict[str, ModelLoader] = {}  # replaced, never changed: the gRPC thread reads it and must not wait
        self._scans: dict[str, Future[None]] = {}  # the latest of each model
        self._loads: dict[str, Future[list[str]]] = {}  # likewise, by request
        self._misplaced = MisplacedFiles(folder)
        self._publishing = threading.RLock()
        self._stopped = False
        self._turns = Turns(side_by_side=max(2, min(cpus, MAX_SIDE_BY_SIDE)))
        metrics.watch_failures(
            lambda: [
                (name, str(version), failure.outcome)
                for name, model in self._known().items()
                for version, failure in model.failures.items()
            ]
        )

    @property
    def loading(self) -> bool:
        """Whether a version is being loaded."""
        return any(model.loading is not None for model in self._known().values())

    def scan(self) -> bool:
        """Loads what is new or changed, and unpublishes models whose folder is deleted. Waits until that is done.

        Returns whether to scan again soon: a version or settings wait until their files are no longer written.
        """
        asked = self._ask_all()
        while unfinished := {name: future for name, future in asked.items() if not future.done()}:
            self._turns.tend()
            late = [name for name in unfinished if self._turns.running_seconds(name) > self._load_seconds]
            if len(late) == len(unfinished):
                log.error("still loading after %g s, not waited for any longer: %s", self._load_seconds, ", ".join(late))
                break
            concurrent.futures.wait(unfinished.values(), _TEND_SECONDS)
        return self._any_waits()

    def scan_soon(self) -> bool:
        """Like `scan`, but waits only a moment. Returns whether to scan again soon: also if some models are not done."""
        asked = self._ask_all()
        self._turns.tend()
        unfinished = concurrent.futures.wait(asked.values(), WATCH_SECONDS).not_done
        return bool(unfinished) or self._any_waits()

    def load(self, name: str, seconds: float | None = None) -> None:
        """Brings a model to what its folder holds, and serves it again if it was unloaded. Blocks until that is done.

        Who asks for it says that the files are complete: it does not wait to see whether they still change.

        Args:
            name: the model.
            seconds: how long to wait at most, if less than usual.

        Raises:
            NotFound: there is no such model in the repository, or only under a name that models cannot have.
            LoadError: a version of it that should be served cannot be loaded; what was served before still is.
            DeadlineExceeded: it still loads.
            Unavailable: the server is stopping.
        """
        if name not in self._names():
            raise NotFound("; ".join([f"no model named {name[:64]!r} is in the repository", *self._misplaced.reasons(name)]))
        with self._lock:
            future = self._loads.get(name)
            if future is None or future.running() or future.done():  # else this load, too, sees what is in the folder now
                future = self._loads[name] = self._turns.submit(name, self._model(name).load, at_once=True)
        reasons = self._result(name, future, seconds)
        if not reasons and name not in self._registry.served:
            reasons = ["it has no version", *self._misplaced.reasons(name)]
        if reasons:
            raise LoadError(f"model {name!r} could not be loaded: {'; '.join(reasons)}")

    def unload(self, name: str, seconds: float | None = None) -> None:
        """Takes a model out of service until `load` or a restart. Running requests are finished; the last one frees its memory.

        Waits until a running load of the model has ended; for `seconds` and `DeadlineExceeded` see `load`.

        Raises:
            NotFound: there is no such model in the repository.
        """
        if name not in self._registry.served and name not in self._names():
            raise NotFound(f"no model named {name[:64]!r} is in the repository")
        with self._lock:
            future = self._turns.submit(name, self._model(name).unload, at_once=True)
        self._result(name, future, seconds)

    def stop(self, seconds: float) -> bool:
        """Begins nothing more, waits up to `seconds` for what is being loaded, and unpublishes every model.

        Returns whether all loads have ended. One that has not is never published.
        """
        ended = self._turns.close(seconds)
        with self._publishing:
            self._stopped = True
            for name in list(self._registry.served):
                self._registry.publish(name, ())
        return ended

    def index(self) -> list[VersionState]:
        """The state of every version that is served, being loaded, failed or unloaded; by name and version."""
        return sorted(state for model in self._known().values() for state in model.states().values())

    def why_version_not_served(self, name: str, version: str) -> RequestError | None:
        """The error for a request to a version or alias that is not served yet, of a model that is; None if it is not expected."""
        model = self._known().get(name)
        return model.why_version_not_served(version) if model is not None else None

    def why_not_served(self, name: str) -> RequestError:
        """The error for a request to a model of which no version is served."""
        model = self._known().get(name)
        error = model.why_not_served() if model is not None else None
        served = ", ".join(sorted(self._registry.served)) or "none"
        return error or NotFound(f"no model named {name[:64]!r}; served are: {served}")

    def _known(self) -> dict[str, ModelLoader]:
        return self._models

    def _model(self, name: str) -> ModelLoader:
        model = self._models.get(name)
        if model is None:
            model = ModelLoader(name, self._surroundings)
            self._models = {**self._models, name: model}
        return model

    def _names(self) -> list[str]:
        try:
            return model_names(self._folder)
        except OSError:
            return []

    def _ask_all(self) -> dict[str, Future[None]]:
        """Has every model that is or was in the folder scanned in its turn."""
        self._registry.close_unclosed()
        try:
            names = model_names(self._folder)
        except OSError as error:
            log.warning("repository: cannot read the folder: %s", error.strerror)
            return {}
        with self._lock:
            gone = self._models.keys() - set(names)
            forgotten = set(filter(self._can_be_forgotten, gone))
            self._models = {name: model for name, model in self._models.items() if name not in forgotten}
            for name in forgotten:
                self._scans.pop(name, None)
                self._loads.pop(name, None)
            asked = {name: self._ask(name, gone=name in gone) for name in (*names, *sorted(gone - forgotten))}
        self._misplaced.scan()  # while they have their turns
        return asked

    def _can_be_forgotten(self, name: str) -> bool:
        futures = (self._scans.get(name), self._loads.get(name))
        done = all(future is None or future.done() for future in futures)
        return done and name not in self._registry.served and not self._models[name].states() and not self._models[name].problem

    def _ask(self, name: str, *, gone: bool) -> Future[None]:
        """Has one model scanned, unless it is going to be."""
        future = self._scans.get(name)
        if future is None or future.running() or future.done():
            model = self._model(name)
            future = self._scans[name] = self._turns.submit(name, model.gone if gone else model.scan)
        return future

    def _any_waits(self) -> bool:
        return any(model.waiting or model.settings_wait for model in self._known().values())

    def _publish(self, name: str, versions: tuple[ServedVersion, ...], routing: Routing) -> bool:
        """Serves these versions of a model; False if the server has stopped. Several models may be published at a time."""
        with self._publishing:
            if self._stopped:
                return False
            self._registry.publish(name, versions, routing)
            return True

    def _result(self, name: str, future: Future[Any], seconds: float | None) -> Any:
        limit = self._load_seconds if seconds is None else max(0.0, min(seconds, self._load_seconds))
        try:
            return future.result(limit)
        except TimeoutError:
            raise DeadlineExceeded(f"model {name!r} is not done after {limit:.3g} s: it is still being loaded") from None
        except CancelledError:
            raise Unavailable("the server is stopping") from None
