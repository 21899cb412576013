"""Loads the versions of one model that its folder and its policy ask for, and remembers why others could not be loaded.

Which versions. A policy names them, or takes the highest ones that load; a version with an alias is served too. A version that
cannot be loaded takes no place: a version in memory is served on until another one works or its file is deleted. A version whose
files are still being written waits (`version_files.py`), unless a request asks for it to be loaded; so do changed settings.
"""

import logging
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from service.access import audit
from service.engine.instances import load_instances, start_batcher
from service.engine.registry import Registry
from service.engine.routing import Routing, make_routing
from service.engine.served_version import Fingerprint, ServedVersion
from service.engine.settings_files import SettingsFiles
from service.engine.trial import Trial, TrialsClosed, TryVersion
from service.engine.version_files import SETTLE_SECONDS, VersionFiles
from service.errors import (
    MAX_REASON_CHARACTERS,
    FilesChanged,
    LoadError,
    NotFound,
    PassingFailure,
    RequestError,
    Unavailable,
    UserError,
    short_reason,
)
from service.model.files import file_state
from service.model.providers import Provider
from service.model.repository_layout import (
    MODEL_FILE,
    is_version,
    labels_path,
    model_path,
    version_labels_path,
    version_numbers,
)
from service.model.session import ProviderUnavailable, fell_back
from service.observability.metrics import Metrics
from service.observability.trace_context import TraceContext
from service.policy import CHOOSING_KEYS, LATEST, Policy
from service.process.malloc import return_freed_memory
from service.triton.config_file import CONFIG_FILE
from service.triton.labels import declared_labels, label_paths
from service.triton.model_config import TritonSettings
from service.triton.settings import ModelSettings
from service.triton.warmup import warmup_files

if TYPE_CHECKING:
    from service.model.trusted_keys import TrustedKeys

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 30.0
"""What fails for a passing reason is loaded again after so long; and then whenever the time since it first failed has doubled."""

_WRITTEN = "its files are still being written"

TraceModelBatch = Callable[[str, int, int, list[TraceContext], float, float], None]
"""Takes the name and version of a model, and what `batcher.TraceBatch` takes."""


class VersionState(NamedTuple):
    """The state of one version. A READY version has a reason if a change of it could not be loaded, a LOADING one if it waits.

    An IDLE version lies in the repository, and nothing asks for it to be served.
    Version 0 stands for a model of which no version is known, and whose folder or settings are at fault.
    """

    name: str
    version: int
    state: Literal["READY", "LOADING", "UNAVAILABLE", "IDLE"]
    reason: str

    @property
    def number(self) -> str:
        """The version as APIs have it; empty for 0."""
        return str(self.version or "")


class Failure(NamedTuple):
    """Why a version could not be loaded. It is not tried again until its fingerprint changes, or the time `again_at` has come.

    `since` is when it first failed with this fingerprint. Both are of time.monotonic.
    """

    fingerprint: Fingerprint
    reason: str
    outcome: str
    since: float
    again_at: float


class Only(NamedTuple):
    """The one version of a model that is served, whatever its policy says; and the name of its model file, if given."""

    version: int
    file: str = ""

    def applied(self, settings: ModelSettings) -> ModelSettings:
        """The settings of a model, with this version in place of those that they choose."""
        defaults = {key: Policy.model_fields[key].default for key in CHOOSING_KEYS}
        policy = settings.policy.model_copy(update={**defaults, "versions": str(self.version)})
        triton = settings.triton._replace(model_file=self.file) if self.file else settings.triton
        return settings._replace(policy=policy, triton=triton)


class Surroundings(NamedTuple):
    """What all models of a server share.

    Attributes:
        folder: the repository.
        provider: where models compute unless their policy says so.
        cpus: a model computes with at most as many threads.
        policies: a folder; `<model>.toml` in it replaces the model's own policy.
        publish: serves the versions of a model, as `Registry.publish`; False if the server has stopped.
        try_version: tries a version in a process of its own, as `Trials.try_version`; None loads what is there.
        trusted: only versions that one of these keys has signed are loaded.
        only: of each model, this version alone.
    """

    folder: Path
    provider: Provider
    metrics: Metrics
    registry: Registry
    cpus: int
    trace_batch: TraceModelBatch | None
    policies: Path | None
    publish: Callable[[str, tuple[ServedVersion, ...], Routing], bool]
    try_version: TryVersion | None = None
    trusted: "TrustedKeys | None" = None
    only: Only | None = None


class ModelLoader:
    """Keeps the registry at what the folder of one model holds.

    Its methods are called in the model's turn (`turns.py`). What others read meanwhile is replaced, never changed.

    Attributes:
        failures: why versions could not be loaded.
        loading: the version that is being loaded.
        waiting: versions that wait until their files are no longer written.
        settings_wait: whether changed settings do.
        unloaded: versions that are not loaded again without a request; None unless a request has unloaded the model.
        problem: why its folder cannot be read; empty if it can.
    """

    def __init__(self, name: str, surroundings: Surroundings) -> None:
        self.failures: dict[int, Failure] = {}
        self.loading: int | None = None
        self.waiting: frozenset[int] = frozenset()
        self.settings_wait = False
        self._expected: frozenset[int] = frozenset()  # versions that a policy names and that this scan has yet to come to
        self._found: tuple[int, ...] = ()
        self.unloaded: tuple[int, ...] | None = None
        self.problem = ""
        self._name = name
        self._shared = surroundings
        self._files = VersionFiles(whole_folders=surroundings.trusted is not None)
        self._unsettled: set[int] = set()
        self._asked = False
        self._settings_files = SettingsFiles(surroundings.folder, name, surroundings.policies)
        self._settings = ModelSettings(Policy())

    def scan(self) -> None:
        """Loads what is new or changed, unless a request has unloaded the model."""
        if self.unloaded is None:
            self._refresh()

    def load(self) -> list[str]:
        """Brings the model to what its folder holds, and serves it again if it was unloaded. Waits for no file to settle.

        Returns:
            Why versions of it that should be served cannot be loaded; what was served before still is.
        """
        self.unloaded = None
        self._forget_failures()
        self._refresh(wait=False)
        reasons = [f"version {version}: {failure.reason}" for version, failure in self.failures.items()]
        reasons += [f"version {version}: {_WRITTEN}" for version in self._unsettled]
        return [self.problem, *reasons] if self.problem else reasons

    def unload(self) -> None:
        """Takes the model out of service. Running requests are finished; the last one frees its memory."""
        if self.unloaded is None:
            self.unloaded = tuple(self.failures.keys() | {each.version for each in self._served()})
            self._forget()

    def gone(self) -> None:
        """Its folder is no longer there."""
        self.unloaded = None
        self._found = ()
        self._forget()

    def states(self) -> dict[int, VersionState]:
        """The state of every version that is served, being loaded, failed or unloaded. Without one, the problem of the model."""
        name, failures, loading = self._name, self.failures, self.loading
        states = {version: VersionState(name, version, "IDLE", "") for version in self._found}
        states |= {version: VersionState(name, version, "UNAVAILABLE", failure.reason) for version, failure in failures.items()}
        states |= {version: VersionState(name, version, "UNAVAILABLE", "unloaded") for version in self.unloaded or ()}
        states |= {version: VersionState(name, version, "LOADING", _WRITTEN) for version in self.waiting}
        if loading is not None:
            states[loading] = VersionState(name, loading, "LOADING", "")
        for served in self._served():
            version = served.version
            states[version] = VersionState(name, version, "READY", failures[version].reason if version in failures else "")
        return states or ({0: VersionState(name, 0, "UNAVAILABLE", self.problem)} if self.problem else {})

    def why_not_served(self) -> RequestError | None:
        """The error for a request to the model if no version of it is served; None if nothing is known of it."""
        name = self._name
        if self.waiting:
            return Unavailable(f"model {name!r} is not loaded yet: {_WRITTEN}")
        if self.unloaded is not None:
            return NotFound(f"model {name!r} has been unloaded")
        if self.failures or self.problem:
            return NotFound(f"model {name!r} is in the repository but could not be loaded; see the server's log")
        if self.loading is not None:
            return Unavailable(f"model {name!r} is still being loaded")
        return None

    def why_version_not_served(self, version: str) -> RequestError | None:
        """The error for a request to a version or alias that will be served; None if it is not expected."""
        policy = self._settings.policy
        name = version or str(policy.default)
        number = policy.aliases.get(name) or (int(name) if is_version(name) else 0)
        coming = self.waiting | self._expected | ({self.loading} if self.loading is not None else set())
        if number in self.waiting:
            return Unavailable(f"version {number} of model {self._name!r} is not loaded yet: {_WRITTEN}")
        if number in coming or (name == LATEST and coming):
            return Unavailable(f"version {number or name} of model {self._name!r} is still being loaded")
        return None

    def _served(self) -> tuple[ServedVersion, ...]:
        return self._shared.registry.served.get(self._name, ())

    def _forget(self) -> None:
        self._forget_failures()
        self._set_waiting()
        self._set_problem("")
        self._shared.publish(self._name, (), Routing({}))

    def _refresh(self, *, wait: bool = True) -> None:
        """Brings the model to the versions that its policy asks for. With `wait`, those whose files are being written wait."""
        self._unsettled = set()
        self._asked = not wait
        name, folder = self._name, self._shared.folder
        current = {served.version: served for served in self._served()}
        try:
            found = version_numbers(folder, name)
        except OSError as error:
            self._found = ()
            self._set_problem(f"its folder cannot be read: {error.strerror}")
            return
        self._found = tuple(found) if self._shared.only is None else ()
        self.settings_wait = False
        try:
            settings = self._settings_files.read(wait=wait and bool(current))
        except UserError as error:
            reason = short_reason(error)
            self._set_problem("" if found else reason)
            self._forget_failures(keep=found[-1:])
            self._set_waiting()
            if found:
                self._fail(found[-1], self._settings_files.states(), "invalid", reason, what="policy")
            return
        self.settings_wait = settings is None
        if settings is None:
            return
        self._set_problem("")
        if self._shared.only is not None:
            settings = self._shared.only.applied(settings)
        if settings[:2] != self._settings[:2]:
            self._note(settings)
        policy, triton, files_named = settings
        named, listed = policy.named(found), policy.listed(found)
        serving: list[ServedVersion] = []
        asked_for: list[int] = []  # by `versions`, of those in `serving`
        published = False
        tried = set()
        self._expected = frozenset(named)
        try:
            for version in sorted(named.union(found), reverse=True):
                if version in named or len(serving) < policy.latest:
                    tried.add(version)
                    named_by = files_named if version in named else ""
                    served = self._load_changed(version, settings, current.get(version), named_by, wait)
                    if served is not None and (version in listed or len(serving) < policy.latest):
                        asked_for.append(version)
                    serving += [served] if served is not None else []
                self._expected -= {version}
            if not serving:
                serving = [
                    served
                    for served in current.values()
                    if file_state(model_path(folder, name, served.version, triton.model_file)) is not None
                ]
            self._forget_failures(keep=tried)
            self._set_waiting(self._unsettled)
            self._files.forget_others()
            before = self._shared.registry.routing(name).latest
            routing = make_routing(policy, {served.version for served in serving}, asked_for, before)
            published = self._shared.publish(name, tuple(serving), routing)
        finally:
            self._expected = frozenset()
            if not published:  # the server has stopped, or something has been raised
                for served in serving:
                    if served not in (*current.values(), *self._served()):
                        served.close()

    def _note(self, settings: ModelSettings) -> None:
        """Takes new settings, for the audit log, and says what of config.pbtxt is not used."""
        self._settings = settings
        policy, triton, _ = settings
        said = {key: value for key, value in triton._asdict().items() if value != TritonSettings._field_defaults[key]}
        audit.record("policy", "ok", model=self._name, settings=policy.model_dump(exclude_unset=True) | said)
        if triton.unused:
            log.info("model %s: %s: not used: %s", self._name, CONFIG_FILE, ", ".join(triton.unused)[:MAX_REASON_CHARACTERS])

    def _load_changed(
        self, version: int, settings: ModelSettings, current: ServedVersion | None, named_by: str, wait: bool
    ) -> ServedVersion | None:
        """The version as its files are now; as it is in memory if they have not changed or do not load; None without either.

        `named_by` is the policy file that names this version; empty if none does.
        """
        name, folder = self._name, self._shared.folder
        policy, triton, _ = settings
        path = model_path(folder, name, version, triton.model_file)
        files = self._files.states(path)
        labels = (
            version_labels_path(folder, name, version),
            labels_path(folder, name),
            *label_paths(folder / name, triton).values(),
        )
        beside = [*labels, *warmup_files(folder / name, triton.warmup)]
        keys = policy.model_dump(exclude=CHOOSING_KEYS)
        fingerprint = (files, *map(file_state, beside), keys, triton._replace(unused=()))
        if files[0] is None:
            problem = _access_problem(path)
            deleted = current is not None and current.triton.model_file == triton.model_file
            if not problem and not deleted and triton.model_file != MODEL_FILE and path.parent.is_dir():
                problem = f"there is no {triton.model_file} in its folder, which {CONFIG_FILE} names as the model file"
            if problem:
                self._fail(version, fingerprint, "failed", problem)
            elif named_by:
                self._fail(version, fingerprint, "failed", f"{named_by} names it, but there is no {triton.model_file} of it")
            return current if problem else None
        if current is not None and current.fingerprint == fingerprint:
            self._forget_failure(version)
            return current
        failure = self.failures.get(version)
        if failure is not None and failure.fingerprint == fingerprint and time.monotonic() < failure.again_at:
            return current
        if wait and not self._files.are_settled(path):
            self._unsettled.add(version)
            return current
        self.loading = version
        log.info("model %s version %d: loading", name, version)
        try:
            return self._load(version, settings, fingerprint) or current
        finally:
            self.loading = None
            return_freed_memory()  # what loading needed beside the model

    def _load(self, version: int, settings: ModelSettings, fingerprint: Fingerprint) -> ServedVersion | None:
        """Loads and warms one version; None, and the reason in log, index and metric, if that fails."""
        name, shared = self._name, self._shared
        start = time.monotonic()
        policy, triton, _ = settings
        path = model_path(shared.folder, name, version, triton.model_file)
        try:
            signed = None if shared.trusted is None else shared.trusted.verify(path.parent)  # before anything of it is parsed
            labels, declared = declared_labels(shared.folder, name, version, settings, signed)
            approval = None
            if shared.try_version is not None:
                trial = Trial(path.absolute(), labels, policy, shared.provider, shared.cpus, self._asked, signed, declared, triton)
                approval = shared.try_version(trial)
            loaded = load_instances(path, labels, policy, shared.provider, shared.cpus, signed, approval, declared, triton)
            model = loaded.instances[0]
            metrics = shared.metrics.model_loaded(name, str(version), model.labels, model.gives_probabilities)
            trace_batch = None if shared.trace_batch is None else partial(shared.trace_batch, name, version)
            batcher = start_batcher(name, version, loaded, policy, metrics.batch, trace_batch)
            fallen = fell_back(policy.provider or shared.provider, model.provider)
            metrics.serving(policy.max_queue_items, batcher.max_batch_items, lambda: batcher.queued_items, fell_back=fallen)
        except TrialsClosed:
            return None  # the server stops
        except FilesChanged:
            self._files.changed_while_read(path)
            self._unsettled.add(version)
            return None
        except LoadError as error:
            passing = isinstance(error, PassingFailure)
            reason = short_reason(error)
            if isinstance(error, ProviderUnavailable) and policy.provider == triton.accelerator:
                reason += f'; {CONFIG_FILE} names it as an accelerator: provider = "auto" in serving.toml takes what there is'
            self._fail(version, fingerprint, error.outcome, reason, time.monotonic() - start, passing=passing)
            return None
        except Exception:
            log.exception("model %s version %d: unexpected error while loading", name, version)
            self._fail(version, fingerprint, "failed", "loading failed inside the server", time.monotonic() - start, passing=True)
            return None
        seconds = time.monotonic() - start
        shared.metrics.load_ended(name, "ready", seconds)
        self._forget_failure(version)
        if shared.trusted is not None:
            log.info("model %s version %d is signed by %s (%s)", name, version, shared.trusted.name(model.signer), model.signer)
        audit.record("version", "ready", model=name, version=version, digest=model.digest, signer=model.signer)
        log.info(
            "model %s version %d is ready: %s, %s, %d x %d ORT threads, batches of up to %d items, loaded in %.2f s, ms a batch %s",
            name, version, model.provider, model.precision, policy.instances, model.threads, batcher.max_batch_items, seconds,
            ", ".join(f"{items}: {1000 * taken:.3g}" for items, taken in loaded.measured.items()),
        )  # fmt: skip
        return ServedVersion(name, version, model, policy, batcher, metrics, fingerprint, triton, loaded.forms)

    def _fail(
        self,
        version: int,
        fingerprint: Fingerprint,
        outcome: str,
        reason: str,
        seconds: float | None = None,
        what: str = "version",
        *,
        passing: bool = False,
    ) -> None:
        """Remembers why a version could not be loaded: for the index, and, the first time, in log, metric and audit log."""
        known = self.failures.get(version)
        now = time.monotonic()
        before = known if known is not None and known.fingerprint == fingerprint else None
        since = now if before is None else before.since
        again_at = now + max(PATIENCE_SECONDS, now - since) if passing else float("inf")
        self.failures = self.failures | {version: Failure(fingerprint, reason, outcome, since, again_at)}
        if before is not None and (passing or before.again_at == float("inf")):
            return
        if any(served.version == version for served in self._served()):
            log.error(
                "model %s version %d: the changed version cannot be loaded, the previous one is still served: %s",
                self._name,
                version,
                reason,
            )
        else:
            log.error("model %s version %d is not served: %s", self._name, version, reason)
        self._shared.metrics.load_ended(self._name, outcome, seconds)
        audit.record(what, f"{outcome}: {reason[:500]}", model=self._name, version=version)

    def _set_waiting(self, versions: Collection[int] = ()) -> None:
        """Notes which versions wait, and logs those that did not wait before."""
        for version in set(versions) - self.waiting:
            log.info(
                "model %s version %d: %s; it is loaded once they are the same for %g s",
                self._name, version, _WRITTEN, SETTLE_SECONDS,
            )  # fmt: skip
        self.waiting = frozenset(versions)

    def _set_problem(self, problem: str) -> None:
        """Notes why the folder cannot be read, and logs it when it is new."""
        if problem and problem != self.problem:
            log.error("model %s is not served anew: %s", self._name, problem)
        self.problem = problem

    def _forget_failure(self, version: int) -> None:
        self._forget_failures(keep=self.failures.keys() - {version})

    def _forget_failures(self, keep: Collection[int] = ()) -> None:
        """Forgets the failures of all versions, except those to `keep`."""
        if not self.failures.keys() <= set(keep):
            self.failures = {version: failure for version, failure in self.failures.items() if version in keep}


def _access_problem(path: Path) -> str:
    """Why the model file of a version cannot be accessed; empty if it is not there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f"the model file cannot be accessed: {error.strerror}"
    return ""
