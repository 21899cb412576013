"""The models being served: loaded from a folder, swapped while requests are in hand, watched for change.

A version is loaded, warmed and proved on its golden samples by the thread that scans, off the serving path; only then is it served,
by one assignment for all versions and aliases of its model. Whoever has acquired a model keeps it until it is released, so requests
in hand finish on the version they started on, and a model is closed when the last of them is done.

Which versions. A policy names them, or takes the highest ones that load; a version that an alias stands for is served too. One that
cannot be loaded takes no place: a version in memory serves on until there is another that works, or its file is gone.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import watchfiles

from service.engine.batcher import Batcher
from service.engine.instances import load_instances, start_batcher
from service.errors import LoadError, NotFound, Unavailable, UserError
from service.model.cpus import cpu_budget
from service.model.files import file_state
from service.model.inference import Model
from service.model.providers import Provider
from service.model.repository_layout import (
    MODEL_FILE,
    POLICY_FILE,
    labels_path,
    misplaced,
    model_names,
    model_path,
    policy_path,
    read_labels,
    version_numbers,
)
from service.model.session import fell_back
from service.observability.metrics import Metrics
from service.observability.request_metrics import ModelMetrics
from service.observability.trace_context import TraceContext
from service.policy import Policy, read_policy

log = logging.getLogger(__name__)

RESCAN_MILLISECONDS = 5000
STUCK_SECONDS = 30.0
"""A batch that has kept the transport's thread for so long, when a millisecond was expected at most, will hardly come to an end."""

T = TypeVar("T")

Fingerprint = tuple[object, ...]
"""What tells that a version has changed: how its files look on disk, and by which policy it is served."""


@dataclass(eq=False)
class ServedModel:
    """One version of one model, ready to answer."""

    name: str
    version: int
    model: Model
    policy: Policy
    batcher: Batcher
    metrics: ModelMetrics
    fingerprint: Fingerprint
    kept: dict[type, Any] = field(default_factory=dict)  # what others keep with it for as long as it is served, by type
    inflight: int = 0
    retired: bool = False


class IndexEntry(NamedTuple):
    """How one version stands. A version that is READY has a reason too, if a change of it could not be taken up."""

    name: str
    version: int
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str


class _Failure(NamedTuple):
    """Why a version could not be loaded. It is not tried again until its fingerprint changes."""

    fingerprint: Fingerprint
    reason: str
    outcome: str


class Repository:
    """The models of one folder. Construct, `start`, and in the end `stop`.

    Attributes:
        scanned: whether every model has been loaded that was there at the start, and can be.
    """

    def __init__(
        self,
        folder: Path,
        provider: Provider,
        metrics: Metrics,
        on_change: Callable[[], None] = lambda: None,
        cpus: int | None = None,
        trace_batch: Callable[[str, int, int, list[TraceContext], float, float], None] | None = None,
        policies: Path | None = None,
    ) -> None:
        """`on_change` is called after the set of served models has changed, by the thread that changed it.

        A model computes with at most `cpus` threads; as many as there are CPUs for this process if not given. `trace_batch` is
        told of each batch: its model, version, and what `batcher.TraceBatch` says. A `<model>.toml` in the folder `policies` takes
        the place of the model's own policy.
        """
        self._policies = policies
        self._folder = folder
        self._provider = provider
        self._metrics = metrics
        self._on_change = on_change
        self._cpus = cpus or cpu_budget()
        self._trace_batch = trace_batch
        # What readers need no lock for is replaced, never changed.
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._waiting = 0  # for it to be idle
        self._served: dict[str, tuple[ServedModel, ...]] = {}  # highest version first
        self._aliases: dict[str, dict[str, int]] = {}
        self._routes: dict[tuple[str, str], ServedModel] = {}  # by name, and version or alias as requests write it
        self._retiring: tuple[ServedModel, ...] = ()  # no longer served, with requests still in hand
        self._active: tuple[ServedModel, ...] = ()  # all that are served or retiring
        self._scanning = threading.Lock()  # held while models are loaded or unloaded
        self._failed: dict[tuple[str, int], _Failure] = {}
        self._unloaded: dict[str, tuple[int, ...]] = {}  # by request; not loaded again without one
        self._loading: tuple[str, int] | None = None
        self.scanned = False
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="repository-watch", daemon=True)
        metrics.watch_failures(
            lambda: [(name, str(version), failure.outcome) for (name, version), failure in dict(self._failed).items()]
        )

    def start(self) -> None:
        """Loads what is there, then watches the folder."""
        self._scan()
        self.scanned = True
        self._on_change()
        self._watcher.start()
        if not self._served:
            log.warning("no model is served yet; watching for %s", self._folder / "<model>" / "<version>" / MODEL_FILE)
        with contextlib.suppress(OSError):  # what cannot be looked at is nobody's mistake
            for file, reason in misplaced(self._folder):
                log.warning("repository: %s is not served: %s", file, reason)

    def stop(self) -> None:
        """Stops watching and closes every model. Only when no request is in hand."""
        self._stopping.set()
        if self._watcher.ident is not None:
            self._watcher.join()
        with self._scanning:
            for name in list(self._served):
                self._publish(name, (), {})

    @property
    def ready(self) -> bool:
        """Whether every loadable model has been loaded and at least one serves."""
        return self.scanned and bool(self._served)

    @property
    def served(self) -> dict[str, tuple[ServedModel, ...]]:
        """The versions being served by name of the model, the highest first, as of now."""
        return self._served

    def aliases(self, name: str) -> dict[str, int]:
        """The versions that a model's aliases stand for, of those that are served."""
        versions = {served.version for served in self._served.get(name, ())}
        return {alias: version for alias, version in self._aliases.get(name, {}).items() if version in versions}

    def index(self) -> list[IndexEntry]:
        """How every version stands that is served, being loaded, could not be loaded or was unloaded; by name and version."""
        failed, loading = dict(self._failed), self._loading
        found = {
            (name, version): IndexEntry(name, version, "UNAVAILABLE", failed[name, version].reason) for name, version in failed
        }
        for name, versions in dict(self._unloaded).items():
            found |= {(name, version): IndexEntry(name, version, "UNAVAILABLE", "unloaded") for version in versions}
        if loading is not None:
            found[loading] = IndexEntry(*loading, "LOADING", "")
        for served in (served for versions in self._served.values() for served in versions):
            key = served.name, served.version
            found[key] = IndexEntry(*key, "READY", failed[key].reason if key in failed else "")
        return [found[key] for key in sorted(found)]

    def acquire(self, name: str, version: str) -> ServedModel:
        """The model to answer a request with; give it back with `release`.

        `version` is a number, an alias, or empty or `latest` for the highest version served.

        Raises:
            NotFound: no such model, version or alias.
            Unavailable: the server is still loading, so nobody can say yet.
        """
        with self._lock:
            served = self._routes.get((name, version))
            if served is not None:
                served.inflight += 1
                return served
        if not self.scanned:
            raise Unavailable("the server is still loading its models")
        raise self._not_served(name, version)

    def release(self, served: ServedModel) -> None:
        """Gives a model back; the last one to give back a retired model closes it."""
        with self._lock:
            served.inflight -= 1
            close = served.retired and served.inflight == 0
            if close:
                self._retiring = tuple(other for other in self._retiring if other is not served)
                self._active = self._all()
            if served.inflight == 0 and self._waiting:
                self._idle.notify_all()
        if close:
            self._close(served)

    def load(self, name: str) -> None:
        """Brings a model to what its folder holds, and serves it again if it was unloaded. Blocks until that is done.

        Raises:
            NotFound: there is no such model in the repository.
            LoadError: a version of it that should be served cannot be; what was served before still is.
        """
        with self._scanning:
            if name not in self._names():
                raise NotFound(f"no model named {name[:64]!r} is in the repository")
            self._unloaded.pop(name, None)
            self._forget_failures(name)
            self._refresh(name)
            reasons = [f"version {version}: {failure.reason}" for (of, version), failure in self._failed.items() if of == name]
            if not reasons and name not in self._served:
                reasons = ["it has no version"]
        if reasons:
            raise LoadError(f"model {name!r} could not be loaded: {'; '.join(reasons)}")

    def unload(self, name: str) -> None:
        """Takes a model out of service until `load` or a restart. Requests in hand are finished; the last one frees its memory.

        Raises:
            NotFound: there is no such model in the repository.
        """
        with self._scanning:
            if name not in self._served and name not in self._names():
                raise NotFound(f"no model named {name[:64]!r} is in the repository")
            if name in self._unloaded:
                return
            failed = {version for of, version in self._failed if of == name}
            self._unloaded[name] = tuple(failed | {served.version for served in self._served.get(name, ())})
            self._forget_failures(name)
            self._publish(name, (), {})

    @property
    def loading(self) -> bool:
        """Whether a version of a model is being loaded now."""
        return self._loading is not None

    def wait_until_idle(self, seconds: float) -> bool:
        """Waits until no request is in hand, at most so long; whether it came to that."""
        with self._lock:
            self._waiting += 1
            try:
                return self._idle.wait_for(lambda: not any(served.inflight for served in self._active), timeout=seconds)
            finally:
                self._waiting -= 1

    def flush(self) -> None:
        """Lets no request wait for others to fill its batch any more, for a server that drains."""
        for served in self._active:
            served.batcher.flush()

    def pump(self) -> float:
        """For the transport's thread: `Batcher.pump` of every model where something waits; the earliest time it wants next."""
        wanted = float("inf")
        for served in self._active:
            if served.batcher.queued_items:
                wanted = min(wanted, served.batcher.pump())
        return wanted

    def stuck(self) -> str:
        """Why no request can be answered, if a batch has held up the transport's thread for long; else empty."""
        names = [served.name for served in self._active if served.batcher.inline_seconds > STUCK_SECONDS]
        return f"model {names[0]!r} has held up all calls for more than {STUCK_SECONDS:g} s" if names else ""

    def _not_served(self, name: str, version: str) -> NotFound:
        served = self._served.get(name)
        if served is not None:
            known = [str(each.version) for each in served]
            known += [f"{alias} (version {number})" for alias, number in sorted(self.aliases(name).items())]
            return NotFound(f"model {name!r} has no version {version[:64]!r}; served are: {', '.join(known)}")
        if name in self._unloaded:
            return NotFound(f"model {name!r} has been unloaded")
        if any(failed == name for failed, _ in tuple(self._failed)):
            return NotFound(f"model {name!r} is in the repository but could not be loaded; the server's log says why")
        return NotFound(f"no model named {name[:64]!r}; served are: {', '.join(sorted(self._served)) or 'none'}")

    def _watch(self) -> None:
        for _ in self._notices():
            try:
                self._scan()
            except Exception:
                log.exception("repository: looking for changes failed")

    def _notices(self) -> Iterator[None]:
        """Comes to the next when something in the folder may have changed, until `stop`."""
        # Changes inside a debounce window come together; a file still being written shows up again when it has grown. The timeout
        # finds what no notification tells of: changes on network file systems, those made while the first scan ran, and a folder
        # that was deleted and made again.
        said = ""
        while not self._stopping.is_set():
            try:
                for _ in watchfiles.watch(
                    self._folder, stop_event=self._stopping, step=100, debounce=800, rust_timeout=RESCAN_MILLISECONDS,
                    yield_on_timeout=True, raise_interrupt=False, ignore_permission_denied=True,
                ):  # fmt: skip
                    yield
            except Exception as error:  # noqa: BLE001 - such as no more of the kernel's watches to be had
                if str(error) != said:
                    said = str(error)
                    log.warning("repository: not told of changes, looking every %g s: %s", RESCAN_MILLISECONDS / 1000, error)
                if self._stopping.wait(RESCAN_MILLISECONDS / 1000):
                    return
                yield

    def _names(self) -> list[str]:
        try:
            return model_names(self._folder)
        except OSError:
            return []

    def _scan(self) -> None:
        with self._scanning:
            try:
                names = model_names(self._folder)
            except OSError as error:
                log.warning("repository: cannot read the folder: %s", error.strerror)
                return
            for name in names:
                if name not in self._unloaded:
                    self._refresh(name)
            for name in (self._served.keys() | self._unloaded.keys() | {name for name, _ in self._failed}) - set(names):
                self._unloaded.pop(name, None)
                self._forget_failures(name)
                self._publish(name, (), {})

    def _refresh(self, name: str) -> None:
        """Brings one model to the versions that its policy asks for."""
        current = {served.version: served for served in self._served.get(name, ())}
        try:
            found = version_numbers(self._folder, name)
        except OSError as error:
            log.warning("model %s: cannot read its folder: %s", name, error.strerror)
            return
        path = policy_path(self._folder, name, self._policies)
        try:
            policy = read_policy(path)
        except UserError as error:
            self._forget_failures(name, but=found[-1:])
            if found:
                self._fail(name, found[-1], (file_state(path),), "invalid", str(error))
            return
        named = policy.named(found)
        serving: list[ServedModel] = []
        tried = set()
        for version in sorted(named.union(found), reverse=True):
            if version in named or len(serving) < policy.latest:
                tried.add(version)
                served = self._bring(name, version, policy, current.get(version), required=version in named)
                serving += [served] if served is not None else []
        if not serving:
            serving = [served for served in current.values() if model_path(self._folder, name, served.version).exists()]
        self._forget_failures(name, but=tried)
        self._publish(name, tuple(serving), policy.aliases)

    def _bring(self, name: str, version: int, policy: Policy, current: ServedModel | None, required: bool) -> ServedModel | None:
        """A version as its files are now; as it is in memory, if that has not changed or cannot be loaded; None without either."""
        file = file_state(model_path(self._folder, name, version))
        how = policy.model_dump(exclude={"versions", "aliases"})
        fingerprint = (file, file_state(labels_path(self._folder, name)), how)
        if file is None:
            if required:
                self._fail(name, version, fingerprint, "failed", f"{POLICY_FILE} names it, but there is no {MODEL_FILE} of it")
            return None
        if current is not None and current.fingerprint == fingerprint:
            self._failed.pop((name, version), None)
            return current
        failure = self._failed.get((name, version))
        if failure is not None and failure.fingerprint == fingerprint:
            return current
        self._loading = name, version
        log.info("model %s version %d: loading", name, version)
        try:
            return self._load(name, version, policy, fingerprint) or current
        finally:
            self._loading = None

    def _load(self, name: str, version: int, policy: Policy, fingerprint: Fingerprint) -> ServedModel | None:
        """Loads and warms one version; None, and the reason in log, index and metric, if it cannot be served."""
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
        except LoadError as error:
            self._fail(name, version, fingerprint, error.outcome, str(error), time.monotonic() - start)
            return None
        except Exception:
            log.exception("model %s version %d: loading it raised", name, version)
            self._fail(name, version, fingerprint, "failed", "loading it failed inside the server", time.monotonic() - start)
            return None
        seconds = time.monotonic() - start
        self._metrics.load_ended(name, "ready", seconds)
        self._failed.pop((name, version), None)
        log.info(
            "model %s version %d is ready: %s, %s, %d x %d ORT threads, batches of up to %d items, loaded in %.2f s, ms a batch %s",
            name, version, model.provider, model.precision, policy.instances, model.threads, batcher.max_batch_items, seconds,
            ", ".join(f"{items}: {1000 * taken:.3g}" for items, taken in loaded.measured.items()),
        )  # fmt: skip
        return ServedModel(name, version, model, policy, batcher, metrics, fingerprint)

    def _fail(
        self, name: str, version: int, fingerprint: Fingerprint, outcome: str, reason: str, seconds: float | None = None
    ) -> None:
        """Keeps why a version could not be loaded: in the index, and, the first time, in log and metric."""
        known = self._failed.get((name, version))
        self._failed[name, version] = _Failure(fingerprint, reason, outcome)
        if known is not None and known.fingerprint == fingerprint:
            return
        if any(served.version == version for served in self._served.get(name, ())):
            log.error("model %s version %d: the change is not taken up, it serves as before: %s", name, version, reason)
        else:
            log.error("model %s version %d is not served: %s", name, version, reason)
        self._metrics.load_ended(name, outcome, seconds)

    def _forget_failures(self, name: str, but: Collection[int] = ()) -> None:
        """Forgets why versions of a model could not be loaded, `but` those that still are to be."""
        self._failed = {key: failure for key, failure in self._failed.items() if key[0] != name or key[1] in but}

    def _publish(self, name: str, new: tuple[ServedModel, ...], aliases: dict[str, int]) -> None:
        """The atomic swap: from here on requests get the `new` versions and their aliases, and the others are retired."""

        def others(of: dict[str, T]) -> dict[str, T]:
            return {key: value for key, value in of.items() if key != name}

        old = self._served.get(name, ())
        if new == old and aliases == self._aliases.get(name, {}):
            return
        for served in new:
            model = served.model
            self._metrics.model_serving(name, str(served.version), model.provider, model.precision, model.digest)
        if new:
            threads = sum(served.policy.instances * served.model.threads for served in new)
            self._metrics.watch_model(name, lambda: self._inflight(name), threads)
        gone = [served for served in old if served not in new]
        with self._lock:
            self._served = others(self._served) | ({name: new} if new else {})
            self._aliases = others(self._aliases) | ({name: aliases} if new else {})
            self._routes = {route: served for route, served in self._routes.items() if route[0] != name} | _routes(
                name, new, aliases
            )
            for served in gone:
                served.retired = True
            idle = [served for served in gone if not served.inflight]
            self._retiring = (*self._retiring, *(served for served in gone if served.inflight))
            self._active = self._all()
        for served in gone:
            if _identity(served) not in map(_identity, new):
                self._metrics.model_retired(name, *_identity(served))
            if served.version not in [other.version for other in new]:
                self._metrics.model_forgotten(name, str(served.version))
                log.info("model %s version %d is no longer served", name, served.version)
        if old and not new:
            self._metrics.model_unloaded(name)
        for served in idle:
            self._close(served)
        if self.scanned:
            self._on_change()

    def _all(self) -> tuple[ServedModel, ...]:
        return (*(served for versions in self._served.values() for served in versions), *self._retiring)

    def _inflight(self, name: str) -> int:
        return sum(served.inflight for served in self._active if served.name == name)

    def _close(self, served: ServedModel) -> None:
        # On a thread of its own: the last to let go may be the batcher's own thread, which `close` waits for.
        threading.Thread(target=served.batcher.close, name=f"close-{served.name}").start()


def _routes(name: str, versions: tuple[ServedModel, ...], aliases: dict[str, int]) -> dict[tuple[str, str], ServedModel]:
    """What requests may call the versions, highest first, of a model."""
    if not versions:
        return {}
    numbers = {served.version: served for served in versions}
    routes = {(name, str(version)): served for version, served in numbers.items()}
    routes |= {(name, alias): numbers[version] for alias, version in aliases.items() if version in numbers}
    return routes | {(name, ""): versions[0], (name, "latest"): versions[0]}


def _identity(served: ServedModel) -> tuple[str, str, str, str]:
    model = served.model
    return str(served.version), model.provider, model.precision, model.digest
