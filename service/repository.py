"""The models being served: loaded from a folder, swapped while requests are in hand, watched for change.

A version is loaded, warmed and proved on its golden samples by the thread that scans, off the serving path; only then does it
take the place of the one before, in one assignment. Whoever has acquired a model keeps it until it is released, so requests in
hand finish on the version they started on, and a model is closed when the last of them is done.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import watchfiles

from service.batcher import INLINE_SECONDS, Batcher
from service.config import Policy, Provider, read_policy
from service.contract import Contract
from service.errors import LoadError, NotServed, Unavailable, UserError
from service.metrics import Metrics, ModelMetrics
from service.model import Model, cpu_budget, load
from service.repository_layout import model_names, model_path, policy_path, version_numbers

log = logging.getLogger(__name__)

RESCAN_MILLISECONDS = 5000

Fingerprint = tuple[tuple[int, int, int] | None, tuple[int, int, int] | None]
"""What tells that a version has changed: inode, mtime in ns and size, of the model file and of its policy."""


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
    inflight: int = 0
    retired: bool = False

    @property
    def contract(self) -> Contract:
        """What the model says of itself."""
        return self.model.contract


class Repository:
    """The models of one folder. Construct, `start`, and in the end `stop`."""

    def __init__(
        self,
        folder: Path,
        provider: Provider,
        metrics: Metrics,
        on_change: Callable[[], None] = lambda: None,
        policies: Path | None = None,
    ) -> None:
        """Makes a repository; nothing is read yet.

        `on_change` is called after the set of served models has changed, by the thread that changed it. A `<model>.toml` in the
        folder `policies` takes the place of the model's own policy.
        """
        self._policies = policies
        self._folder = folder
        self._provider = provider
        self._metrics = metrics
        self._on_change = on_change
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._served: dict[str, ServedModel] = {}  # replaced, never changed: readers need no lock
        self._retiring: tuple[ServedModel, ...] = ()  # likewise: no longer served, with requests still in hand
        self._failed: dict[tuple[str, int], Fingerprint] = {}  # not tried again until they change
        self._scanned = False
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="repository-watch", daemon=True)

    def start(self) -> None:
        """Loads what is there, then watches the folder."""
        self._scan()
        self._scanned = True
        if not self._served:
            log.warning("no model is served yet; watching %s for one", self._folder)
        self._on_change()
        self._watcher.start()

    def stop(self) -> None:
        """Stops watching and closes every model. Only when no request is in hand."""
        self._stopping.set()
        if self._watcher.ident is not None:
            self._watcher.join()
        for name in list(self._served):
            self._replace(name, None)

    @property
    def ready(self) -> bool:
        """Whether every loadable model has been loaded and at least one serves."""
        return self._scanned and bool(self._served)

    @property
    def served(self) -> dict[str, ServedModel]:
        """The models being served, by name, as of now."""
        return self._served

    def acquire(self, name: str, version: str) -> ServedModel:
        """The model to answer a request with; give it back with `release`.

        Raises:
            NotServed: no such model or version.
            Unavailable: the server is still loading, so nobody can say yet.
        """
        with self._lock:
            served = self._served.get(name)
            if served is not None and (not version or version == "latest" or version == str(served.version)):
                served.inflight += 1
                return served
        if not self._scanned:
            raise Unavailable("the server is still loading its models")
        if served is None and any(failed == name for failed, _ in tuple(self._failed)):
            raise NotServed(f"model {name!r} is in the repository but could not be loaded; the server's log says why")
        if served is None:
            raise NotServed(f"no model named {name[:64]!r}; served are: {', '.join(sorted(self._served)) or 'none'}")
        raise NotServed(f"model {name!r} has no version {version[:64]!r}; served is: {served.version}")

    def release(self, served: ServedModel) -> None:
        """Gives a model back; the last one to give back a retired model closes it."""
        with self._lock:
            served.inflight -= 1
            close = served.retired and served.inflight == 0
            if close:
                self._retiring = tuple(other for other in self._retiring if other is not served)
            if served.inflight == 0:
                self._idle.notify_all()
        if close:
            self._close(served)

    def wait_until_idle(self, seconds: float) -> bool:
        """Waits until no request is in hand, at most so long; whether it came to that."""
        with self._lock:
            return self._idle.wait_for(
                lambda: not any(served.inflight for served in (*self._served.values(), *self._retiring)), timeout=seconds
            )

    def pump(self) -> float:
        """For the transport's thread: `Batcher.pump` of every model where something waits; the earliest time it wants next."""
        wanted = float("inf")
        for served in (*self._served.values(), *self._retiring):
            if served.batcher.queued_items:
                wanted = min(wanted, served.batcher.pump())
        return wanted

    def _watch(self) -> None:
        # Changes inside a debounce window come together; a file still being written shows up again when it has grown. The timeout
        # finds what no notification tells of: changes on network file systems, those made while the first scan ran, and a folder
        # that was deleted and made again.
        while not self._stopping.is_set():
            try:
                for _ in watchfiles.watch(
                    self._folder, stop_event=self._stopping, step=100, debounce=800, rust_timeout=RESCAN_MILLISECONDS,
                    yield_on_timeout=True, raise_interrupt=False,
                ):  # fmt: skip
                    self._scan()
            except Exception as error:  # noqa: BLE001 - whatever it is, watching must go on
                log.warning("repository: cannot watch %s: %s", self._folder, error)
                self._stopping.wait(RESCAN_MILLISECONDS / 1000)

    def _scan(self) -> None:
        try:
            names = model_names(self._folder)
        except OSError as error:
            log.warning("repository: cannot read the folder: %s", error.strerror)
            return
        for name in names:
            try:
                self._refresh(name)
            except OSError as error:
                log.warning("model %s: cannot read its folder: %s", name, error.strerror)
        for name in self._served.keys() - set(names):
            self._replace(name, None)
        self._failed = {key: fingerprint for key, fingerprint in self._failed.items() if key[0] in names}

    def _refresh(self, name: str) -> None:
        """Brings one model to its highest version that loads."""
        current = self._served.get(name)
        for version in reversed(version_numbers(self._folder, name)):
            fingerprint = self._fingerprint(name, version)
            if fingerprint[0] is None:
                continue
            if self._failed.get((name, version)) == fingerprint:
                if current is not None and version <= current.version:
                    return  # as below
                continue
            if current is not None and current.version == version and current.fingerprint == fingerprint:
                return
            served = self._load(name, version, fingerprint)
            if served is not None:
                self._failed.pop((name, version), None)
                self._replace(name, served)
                return
            self._failed[name, version] = fingerprint
            if current is not None and version <= current.version:
                return  # the file was changed for the worse: what is in memory still serves
        if current is not None and not model_path(self._folder, name, current.version).exists():
            self._replace(name, None)

    def _load(self, name: str, version: int, fingerprint: Fingerprint) -> ServedModel | None:
        """Loads and warms one version; None, and the reason in log and metric, if it cannot be served."""
        start = time.monotonic()
        outcome = "ready"
        try:
            policy = read_policy(self._policy_path(name))
            model, measured = self._open(model_path(self._folder, name, version), policy)
            metrics = self._metrics.model_loaded(name, str(version), model.contract.labels)
            batcher = Batcher(
                model.predict,
                name=name,
                max_batch_items=policy.max_batch_size,
                max_queue_items=policy.max_queue_items,
                measured=measured,
                on_batch=metrics.batch,
            )
            batcher.start()
        except (LoadError, UserError) as error:
            outcome = error.outcome if isinstance(error, LoadError) else "invalid"
            current = self._served.get(name)
            if current is not None and current.version == version:
                log.error("model %s version %d: the change is not taken up, it serves as before: %s", name, version, error)
            else:
                log.error("model %s version %d is not served: %s", name, version, error)
            return None
        except Exception:
            outcome = "failed"
            log.exception("model %s version %d is not served", name, version)
            return None
        finally:
            self._metrics.load_ended(name, outcome, time.monotonic() - start)
        log.info(
            "model %s version %d is ready: %s, %s, %d ORT threads, loaded in %.2f s",
            name, version, model.provider, model.contract.precision, model.threads, time.monotonic() - start,
        )  # fmt: skip
        return ServedModel(name, version, model, policy, batcher, metrics, fingerprint)

    def _open(self, path: Path, policy: Policy) -> tuple[Model, dict[int, float]]:
        """Loads a model with as many threads as it can use, and measures it.

        A model that answers one item within the time of an inline batch is served with one thread: waking a second one costs it
        more than it gains, and the second core is wanted for the transport.
        """
        provider = policy.provider or self._provider
        model = load(path, provider, threads=1)
        if model.provider == "cpu" and cpu_budget() > 1 and model.measure(1)[1] > INLINE_SECONDS:
            model = load(path, provider, cpu_budget())
        return model, model.measure(policy.max_batch_size)

    def _replace(self, name: str, new: ServedModel | None) -> None:
        """The atomic swap: from here on requests get `new`, or nothing if it is None."""
        if new is not None:
            model = new.model
            self._metrics.watch_model(name, lambda: new.batcher.queued_items, lambda: new.inflight)
            self._metrics.model_serving(
                name, str(new.version), model.provider, model.contract.precision, model.digest, model.threads
            )
        with self._lock:
            old = self._served.get(name)
            self._served = {key: value for key, value in self._served.items() if key != name} | ({name: new} if new else {})
            if old is not None:
                old.retired = True
                close = old.inflight == 0
                if not close:
                    self._retiring = (*self._retiring, old)
        if old is not None:
            if new is None or _identity(new) != _identity(old):
                self._metrics.model_retired(name, *_identity(old))
            if new is None or new.version != old.version:
                self._metrics.model_forgotten(name, str(old.version))
            if new is None:
                self._metrics.model_unloaded(name)
                log.info("model %s is no longer served", name)
            if close:
                self._close(old)
        if self._scanned:
            self._on_change()

    def _close(self, served: ServedModel) -> None:
        # On a thread of its own: the last to let go may be the batcher's own thread, which `close` waits for.
        threading.Thread(target=served.batcher.close, name=f"close-{served.name}").start()

    def _policy_path(self, name: str) -> Path:
        above = self._policies / f"{name}.toml" if self._policies is not None else None
        return above if above is not None and above.exists() else policy_path(self._folder, name)

    def _fingerprint(self, name: str, version: int) -> Fingerprint:
        return _stat(model_path(self._folder, name, version)), _stat(self._policy_path(name))


def _identity(served: ServedModel) -> tuple[str, str, str, str]:
    model = served.model
    return str(served.version), model.provider, model.contract.precision, model.digest


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
