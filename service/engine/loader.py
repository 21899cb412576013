"""Loads the versions that the repository's folder and its policies ask for, and remembers why others could not be loaded.

A version is loaded, warmed and checked on its golden samples by the thread that scans, off the serving path, and then published.

Which versions. A policy names them, or takes the highest ones that load; a version with an alias is served too. A version that
cannot be loaded takes no place: a version in memory is served on until another one works or its file is deleted. A version whose
files are still being written waits (`version_files.py`), unless a request asks for it to be loaded.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from service.engine.instances import load_instances, start_batcher
from service.engine.misplaced_files import MisplacedFiles
from service.engine.registry import Registry
from service.engine.served_version import Fingerprint, ServedVersion
from service.engine.version_files import SETTLE_SECONDS, VersionFiles
from service.errors import FilesChanged, LoadError, NotFound, RequestError, Unavailable, UserError
from service.malloc import return_freed_memory
from service.model.files import file_state
from service.model.providers import Provider
from service.model.repository_layout import (
    MODEL_FILE,
    labels_path,
    model_names,
    model_path,
    policy_path,
    read_labels,
    version_numbers,
)
from service.model.session import fell_back
from service.observability.metrics import Metrics
from service.observability.trace_context import TraceContext
from service.policy import Policy, read_policy

log = logging.getLogger(__name__)

_WRITTEN = "its files are still being written"

TraceModelBatch = Callable[[str, int, int, list[TraceContext], float, float], None]
"""Takes the name and version of a model, and what `batcher.TraceBatch` takes."""


class VersionState(NamedTuple):
    """The state of one version. A READY version has a reason if a change of it could not be loaded, a LOADING one if it waits."""

    name: str
    version: int
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str


class _Failure(NamedTuple):
    """Why a version could not be loaded. It is not tried again until its fingerprint changes."""

    fingerprint: Fingerprint
    reason: str
    outcome: str


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
    ) -> None:
        """A model computes with at most `cpus` threads. `<model>.toml` in the folder `policies` replaces the model's own policy."""
        self._folder = folder
        self._provider = provider
        self._metrics = metrics
        self._registry = registry
        self._cpus = cpus
        self._trace_batch = trace_batch
        self._policies = policies
        self._lock = threading.Lock()  # held while models are loaded or unloaded
        self._failures: dict[tuple[str, int], _Failure] = {}
        self._unloaded: dict[str, tuple[int, ...]] = {}  # by request; not loaded again without one
        self._loading: tuple[str, int] | None = None
        self._files = VersionFiles()
        self._unsettled: set[int] = set()  # versions of the model that is being refreshed
        self._waiting: frozenset[tuple[str, int]] = frozenset()  # until their files are no longer written; replaced, never changed
        self._misplaced = MisplacedFiles(folder)
        metrics.watch_failures(
            lambda: [(name, str(version), failure.outcome) for (name, version), failure in dict(self._failures).items()]
        )

    @property
    def loading(self) -> bool:
        """Whether a version is being loaded."""
        return self._loading is not None

    def scan(self) -> bool:
        """Loads what is new or changed, and unpublishes models whose folder is deleted.

        Returns whether to scan again soon: a version waits until its files are no longer written.
        """
        with self._lock:
            try:
                names = model_names(self._folder)
            except OSError as error:
                log.warning("repository: cannot read the folder: %s", error.strerror)
                return False
            for name in names:
                if name not in self._unloaded:
                    self._refresh(name)
            known = {name for name, _ in (*self._failures, *self._waiting)}
            for name in (self._registry.served.keys() | self._unloaded.keys() | known) - set(names):
                self._unloaded.pop(name, None)
                self._forget_failures(name)
                self._set_waiting(name)
                self._registry.publish(name, (), {})
            self._files.forget_others()
            self._misplaced.scan()
            return bool(self._waiting)

    def load(self, name: str) -> None:
        """Brings a model to what its folder holds, and serves it again if it was unloaded. Blocks until that is done.

        Who asks for it says that the files are complete: it does not wait to see whether they still change.

        Raises:
            NotFound: there is no such model in the repository, or only under a name that models cannot have.
            LoadError: a version of it that should be served cannot be loaded; what was served before still is.
        """
        with self._lock:
            self._misplaced.scan()
            misplaced = self._misplaced.reasons(name)
            if name not in self._names():
                raise NotFound("; ".join([f"no model named {name[:64]!r} is in the repository", *misplaced]))
            self._unloaded.pop(name, None)
            self._forget_failures(name)
            self._refresh(name, wait=False)
            reasons = [f"version {version}: {failure.reason}" for (of, version), failure in self._failures.items() if of == name]
            reasons += [f"version {version}: {_WRITTEN}" for version in self._unsettled]
            if not reasons and name not in self._registry.served:
                reasons = ["it has no version", *misplaced]
        if reasons:
            raise LoadError(f"model {name!r} could not be loaded: {'; '.join(reasons)}")

    def unload(self, name: str) -> None:
        """Takes a model out of service until `load` or a restart. Running requests are finished; the last one frees its memory.

        Raises:
            NotFound: there is no such model in the repository.
        """
        with self._lock:
            served = self._registry.served.get(name, ())
            if not served and name not in self._names():
                raise NotFound(f"no model named {name[:64]!r} is in the repository")
            if name in self._unloaded:
                return
            failed = {version for of, version in self._failures if of == name}
            self._unloaded[name] = tuple(failed | {each.version for each in served})
            self._forget_failures(name)
            self._set_waiting(name)
            self._registry.publish(name, (), {})

    def unload_all(self) -> None:
        """Unpublishes every model, for a server that stops."""
        with self._lock:
            for name in list(self._registry.served):
                self._registry.publish(name, (), {})

    def index(self) -> list[VersionState]:
        """The state of every version that is served, being loaded, failed or unloaded; by name and version."""
        failures, loading = dict(self._failures), self._loading
        states = {key: VersionState(*key, "UNAVAILABLE", failure.reason) for key, failure in failures.items()}
        for name, versions in dict(self._unloaded).items():
            states |= {(name, version): VersionState(name, version, "UNAVAILABLE", "unloaded") for version in versions}
        states |= {key: VersionState(*key, "LOADING", _WRITTEN) for key in self._waiting}
        if loading is not None:
            states[loading] = VersionState(*loading, "LOADING", "")
        for served in (served for versions in self._registry.served.values() for served in versions):
            key = served.name, served.version
            states[key] = VersionState(*key, "READY", failures[key].reason if key in failures else "")
        return [states[key] for key in sorted(states)]

    def why_not_served(self, name: str) -> RequestError:
        """The error for a request to a model of which no version is served."""
        if any(waiting == name for waiting, _ in self._waiting):
            return Unavailable(f"model {name!r} is not loaded yet: {_WRITTEN}")
        if name in self._unloaded:
            return NotFound(f"model {name!r} has been unloaded")
        if any(failed == name for failed, _ in tuple(self._failures)):
            return NotFound(f"model {name!r} is in the repository but could not be loaded; see the server's log")
        return NotFound(f"no model named {name[:64]!r}; served are: {', '.join(sorted(self._registry.served)) or 'none'}")

    def _names(self) -> list[str]:
        try:
            return model_names(self._folder)
        except OSError:
            return []

    def _refresh(self, name: str, *, wait: bool = True) -> None:
        """Brings one model to the versions that its policy asks for. With `wait`, those whose files are being written wait."""
        self._unsettled = set()
        current = {served.version: served for served in self._registry.served.get(name, ())}
        try:
            found = version_numbers(self._folder, name)
        except OSError as error:
            log.warning("model %s: cannot read its folder: %s", name, error.strerror)
            return
        path = policy_path(self._folder, name, self._policies)
        try:
            policy = read_policy(path)
        except UserError as error:
            self._forget_failures(name, keep=found[-1:])
            self._set_waiting(name)
            if found:
                self._fail(name, found[-1], (file_state(path),), "invalid", str(error))
            return
        named = policy.named(found)
        serving: list[ServedVersion] = []
        tried = set()
        for version in sorted(named.union(found), reverse=True):
            if version in named or len(serving) < policy.latest:
                tried.add(version)
                named_by = path.name if version in named else ""
                served = self._load_changed(name, version, policy, current.get(version), named_by, wait)
                serving += [served] if served is not None else []
        if not serving:
            serving = [served for served in current.values() if model_path(self._folder, name, served.version).exists()]
        self._forget_failures(name, keep=tried)
        self._set_waiting(name, self._unsettled)
        self._registry.publish(name, tuple(serving), policy.aliases)

    def _load_changed(
        self, name: str, version: int, policy: Policy, current: ServedVersion | None, named_by: str, wait: bool
    ) -> ServedVersion | None:
        """The version as its files are now; as it is in memory if they have not changed or do not load; None without either.

        `named_by` is the policy file that names this version; empty if none does.
        """
        path = model_path(self._folder, name, version)
        files = self._files.states(path)
        settings = policy.model_dump(exclude={"versions", "aliases"})
        fingerprint = (files, file_state(labels_path(self._folder, name)), settings)
        if files[0] is None:
            if named_by:
                self._fail(name, version, fingerprint, "failed", f"{named_by} names it, but there is no {MODEL_FILE} of it")
            return None
        if current is not None and current.fingerprint == fingerprint:
            self._failures.pop((name, version), None)
            return current
        failure = self._failures.get((name, version))
        if failure is not None and failure.fingerprint == fingerprint:
            return current
        if wait and not self._files.are_settled(path):
            self._unsettled.add(version)
            return current
        self._loading = name, version
        log.info("model %s version %d: loading", name, version)
        try:
            return self._load(name, version, policy, fingerprint) or current
        finally:
            self._loading = None
            return_freed_memory()  # what loading needed beside the model

    def _load(self, name: str, version: int, policy: Policy, fingerprint: Fingerprint) -> ServedVersion | None:
        """Loads and warms one version; None, and the reason in log, index and metric, if that fails."""
        start = time.monotonic()
        try:
            labels = read_labels(labels_path(self._folder, name))
            loaded = load_instances(model_path(self._folder, name, version), labels, policy, self._provider, self._cpus)
            model = loaded.instances[0]
            metrics = self._metrics.model_loaded(name, str(version), model.labels, model.has_contract)
            trace_batch = None if self._trace_batch is None else partial(self._trace_batch, name, version)
            batcher = start_batcher(name, loaded, policy, metrics.batch, trace_batch)
            fallen = fell_back(policy.provider or self._provider, model.provider)
            metrics.serving(policy.max_queue_items, batcher.max_batch_items, lambda: batcher.queued_items, fell_back=fallen)
        except FilesChanged:
            self._files.changed_while_read(model_path(self._folder, name, version))
            self._unsettled.add(version)
            return None
        except LoadError as error:
            self._fail(name, version, fingerprint, error.outcome, str(error), time.monotonic() - start)
            return None
        except Exception:
            log.exception("model %s version %d: unexpected error while loading", name, version)
            self._fail(name, version, fingerprint, "failed", "loading it failed inside the server", time.monotonic() - start)
            return None
        seconds = time.monotonic() - start
        self._metrics.load_ended(name, "ready", seconds)
        self._failures.pop((name, version), None)
        log.info(
            "model %s version %d is ready: %s, %s, %d x %d ORT threads, batches of up to %d items, loaded in %.2f s, ms a batch %s",
            name, version, model.provider, model.precision, policy.instances, model.threads, batcher.max_batch_items, seconds,
            ", ".join(f"{items}: {1000 * taken:.3g}" for items, taken in loaded.measured.items()),
        )  # fmt: skip
        return ServedVersion(name, version, model, policy, batcher, metrics, fingerprint)

    def _fail(
        self, name: str, version: int, fingerprint: Fingerprint, outcome: str, reason: str, seconds: float | None = None
    ) -> None:
        """Remembers why a version could not be loaded: for the index, and, the first time, in log and metric."""
        known = self._failures.get((name, version))
        self._failures[name, version] = _Failure(fingerprint, reason, outcome)
        if known is not None and known.fingerprint == fingerprint:
            return
        if any(served.version == version for served in self._registry.served.get(name, ())):
            log.error(
                "model %s version %d: the changed version cannot be loaded, the previous one is still served: %s",
                name,
                version,
                reason,
            )
        else:
            log.error("model %s version %d is not served: %s", name, version, reason)
        self._metrics.load_ended(name, outcome, seconds)

    def _set_waiting(self, name: str, versions: Collection[int] = ()) -> None:
        """Notes which versions of a model wait, and logs those that did not wait before."""
        waiting = {(name, version) for version in versions}
        for _, version in waiting - self._waiting:
            log.info(
                "model %s version %d: %s; it is loaded once they are the same for %g s", name, version, _WRITTEN, SETTLE_SECONDS
            )
        self._waiting = frozenset(waiting | {key for key in self._waiting if key[0] != name})

    def _forget_failures(self, name: str, keep: Collection[int] = ()) -> None:
        """Forgets the failures of a model's versions, except those to `keep`."""
        self._failures = {key: failure for key, failure in self._failures.items() if key[0] != name or key[1] in keep}
