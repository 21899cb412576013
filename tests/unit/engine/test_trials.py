"""A version is tried in a process of its own: what is wrong with it is said, and harms nothing else."""

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from service.engine import trial_client as client
from service.engine import trials
from service.engine.instances import load_instances
from service.engine.trial import Approval, Trial, TrialsClosed
from service.engine.trial_client import Process, trial_client
from service.engine.trial_server import TrialServer
from service.engine.trials import Trials
from service.errors import FilesChanged, InvalidModel, LoadError, PassingFailure
from service.model.model_files import Expected, read_model
from service.policy import Policy
from tests.hostile_models import HOSTILE, deep_nesting, endless_loop
from tests.unit.model.graphs import FLOAT, PRODUCT, node, write

MEMORY_BYTES = 256 * 2**20
LONG = 60.0

REASONS = {
    "a loop without an end": "loading it takes longer than 2 s (--load-seconds)",
    "a loop that grows": "loading it needs more than 256 MiB of memory (--load-memory)",
    "a large product": "loading it needs more than 256 MiB of memory (--load-memory)",
    "a crash": "loading it crashes ONNX Runtime: Floating point exception (signal 8)",
    "slow constants": "loading it needs more than 256 MiB of memory (--load-memory)",
    "a giant input": "loading it needs more than 256 MiB of memory (--load-memory)",
}


def trial(path: Path, **policy: int) -> Trial:
    return Trial(path, None, Policy(**policy), "cpu", 2)  # type: ignore[arg-type]


@pytest.fixture
def honest(tmp_path: Path) -> Path:
    return write(tmp_path / "honest" / "1" / "model.onnx", [PRODUCT], {"product": FLOAT})


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    path = tmp_path / "endless" / "1" / "model.onnx"
    endless_loop(path)
    return path


def approval_of(path: Path, max_batch_items: int) -> Approval:
    content = read_model(path)
    return Approval(Expected(content.digest, content.graph_digest, content.size_bytes), max_batch_items)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def test_what_is_wrong_with_each_is_said_and_those_beside_it_are_approved(tmp_path: Path, honest: Path) -> None:
    """All at a time, as models are loaded."""
    paths = {kind: tmp_path / f"{index}" / "1" / "model.onnx" for index, kind in enumerate(HOSTILE)}
    for kind, make in HOSTILE.items():
        make(paths[kind])
    patient, impatient = Trials(LONG, MEMORY_BYTES), Trials(2.0, MEMORY_BYTES)

    def refusal(kind: str, path: Path) -> str:
        with pytest.raises(LoadError) as refused:
            (impatient if kind == "a loop without an end" else patient).try_version(trial(path))
        return str(refused.value)

    with ThreadPoolExecutor(len(HOSTILE) + 1) as pool:
        refusals = {kind: pool.submit(refusal, kind, path) for kind, path in paths.items()}
        approvals = [pool.submit(patient.try_version, trial(honest)) for _ in range(3)]
        assert {approval.result() for approval in approvals} == {approval_of(honest, 64)}
        assert {kind: found.result() for kind, found in refusals.items()} == REASONS


def test_what_only_looks_dangerous_is_approved(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "1" / "model.onnx"
    deep_nesting(path)
    assert Trials(LONG, None).try_version(trial(path)) == approval_of(path, 64)


def test_what_loading_says_is_what_the_trial_says(tmp_path: Path) -> None:
    path = tmp_path / "broken" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nonsense")
    for given in (path, path.parent / "none"):
        with pytest.raises(LoadError) as loading:
            load_instances(given, None, Policy(), "cpu", 1)
        with pytest.raises(LoadError) as tried:
            Trials(LONG, None).try_version(trial(given))
        assert (type(tried.value), str(tried.value)) == (type(loading.value), str(loading.value))
        assert type(tried.value) is InvalidModel


def test_batches_that_need_too_much_memory_are_not_used(tmp_path: Path) -> None:
    """An item needs 32 MiB."""
    path = tmp_path / "large" / "1" / "model.onnx"
    nodes = [
        node("ReduceMax", "x last", "first", keepdims=1),
        node("Expand", "first side", "wide"),
        node("ReduceMean", "wide last", "mean", keepdims=1),
        PRODUCT,
        node("Add", "product mean", "scores"),
    ]
    write(path, nodes, {"scores": FLOAT}, {"last": np.array([1]), "side": np.array([1, 2**23])})
    approval = Trials(LONG, MEMORY_BYTES).try_version(trial(path))
    assert 1 <= approval.max_batch_items < 16
    loaded = load_instances(path, None, Policy(), "cpu", 1, approval=approval)
    assert max(loaded.measured) <= approval.max_batch_items


def test_only_the_bytes_that_were_tried_are_loaded(honest: Path) -> None:
    write(honest, [PRODUCT], {"product": FLOAT}, save_as_external_data=True, location="weights", size_threshold=0)
    weights = honest.parent / "weights"
    content, graph = weights.read_bytes(), honest.read_bytes()
    approval = Trials(LONG, None).try_version(trial(honest))
    for path, other in ((weights, bytes(len(content))), (weights, content + bytes(1000)), (honest, graph + b"\x70\x00")):
        path.write_bytes(other)
        with pytest.raises(FilesChanged, match="changed after they had been tried"):
            load_instances(honest, None, Policy(), "cpu", 1, approval=approval)
        weights.write_bytes(content)
        honest.write_bytes(graph)
    assert load_instances(honest, None, Policy(), "cpu", 1, approval=approval).instances[0].digest == approval.files.digest


def test_a_trial_ends_when_its_server_stops(honest: Path, endless: Path) -> None:
    stopping, other = Trials(LONG * 10, None), Trials(LONG, None)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(stopping.try_version, trial(endless))
        eventually(lambda: stopping._running)
        stopping.close()
        with pytest.raises(TrialsClosed):
            running.result(LONG)
    with pytest.raises(TrialsClosed):
        stopping.try_version(trial(honest))
    assert other.try_version(trial(honest)).max_batch_items == 64


def test_a_process_that_was_killed_is_replaced(honest: Path) -> None:
    tried = Trials(LONG, None)
    tried.try_version(trial(honest))
    for _ in range(2):
        process = trial_client._process
        assert process is not None
        process.kill()
        assert tried.try_version(trial(honest)).max_batch_items == 64


def test_it_inherits_no_socket(honest: Path) -> None:
    trial_client.stop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.set_inheritable(True)
        Trials(LONG, None).try_version(trial(honest))
        process = trial_client._process
        assert process is not None
        inherited = {str(descriptor.readlink()) for descriptor in Path(f"/proc/{process.pid}/fd").iterdir()}
        assert f"socket:[{os.fstat(listening.fileno()).st_ino}]" not in inherited


def test_a_fork_of_the_server_does_the_same(honest: Path) -> None:
    """In a program that has one thread, as `convoy serve` has it. What it can be asked is what a subprocess.Popen can be."""
    program = f"""
import os, pathlib, signal, socket, subprocess
from service.engine.trial_client import trial_client
from service.engine.trial_server import fork_trial_server
from service.engine.trials import Trials
from tests.unit.engine.test_trials import trial
with socket.create_server(("127.0.0.1", 0)):
    fork_trial_server()
fork, own = trial_client._process, os.getpid()
def approve():
    assert Trials(60.0, None).try_version(trial(pathlib.Path({str(honest)!r}))).max_batch_items == 64
approve()
assert os.stat(f"/proc/{{fork.pid}}/exe") == os.stat(f"/proc/{{own}}/exe")
opened = sorted(os.readlink(each) for each in pathlib.Path(f"/proc/{{fork.pid}}/fd").iterdir())
assert opened[:4] == [os.devnull] * 4 and len(opened) == 5, opened  # the fifth is its end of the connection
try:
    fork.wait(0.05)
except subprocess.TimeoutExpired:
    fork.kill()
assert fork.wait() == fork.wait() == -signal.SIGKILL
fork.kill()
approve()
assert trial_client._process.pid != fork.pid
print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_it_ends_when_it_is_idle_and_comes_back(honest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial_client.stop()
    monkeypatch.setattr(client, "IDLE_SECONDS", 0.1)
    for _ in range(2):
        assert Trials(LONG, None).try_version(trial(honest)).max_batch_items == 64
        eventually(lambda: trial_client._process is None)


@pytest.fixture
def trying(endless: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that tries a version for ever."""
    program = f"""
from pathlib import Path
from service.engine.trial import Trial
from service.engine.trials import Trials
from service.policy import Policy
Trials(1000.0, None).try_version(Trial(Path({str(endless)!r}), None, Policy(), "cpu", 1))
"""
    process = subprocess.Popen([sys.executable, "-c", program], text=True)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_server_whichever_way_that_ends(trying: subprocess.Popen[str], how: signal.Signals) -> None:
    eventually(lambda: [fork for child in children(trying.pid) for fork in children(child)])
    [beside] = children(trying.pid)
    started = [beside, *children(beside)]
    trying.send_signal(how)
    trying.wait(LONG)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) for pid in started))


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def test_many_at_a_time_are_all_answered(honest: Path) -> None:
    tried = Trials(LONG, None)
    before = threading.active_count()
    with ThreadPoolExecutor(16) as pool:
        found = {future.result() for future in [pool.submit(tried.try_version, trial(honest)) for _ in range(64)]}
    assert len(found) == 1
    assert threading.active_count() <= before + 1


def stop_reading() -> Process:
    """The process in which models are tried, which from now on does nothing until it gets SIGCONT."""
    trial_client.start()
    process = trial_client._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    return process


def with_many_labels(path: Path) -> Trial:
    """Far more than the connection takes while nobody reads from it."""
    return trial(path)._replace(labels=tuple(f"{number:0100}" for number in range(50_000)))


def test_who_cannot_be_sent_a_trial_keeps_no_other_from_being_ended(honest: Path, endless: Path) -> None:
    """Or the process would wait for its answers to be read, and their reader for the one who sends."""
    stopping, sending = Trials(LONG * 10, None), Trials(LONG, None)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(stopping.try_version, trial(endless))
        eventually(lambda: stopping._running)
        process = stop_reading()
        try:
            sent = pool.submit(sending.try_version, with_many_labels(honest))
            eventually(trial_client._sending.locked)
            closed = pool.submit(stopping.close)
            with pytest.raises(TrialsClosed):
                running.result(LONG)
            assert not sent.done()
        finally:
            process.send_signal(signal.SIGCONT)
        closed.result(LONG)
        with pytest.raises(InvalidModel, match="labels"):
            sent.result(LONG)


def test_large_trials_and_large_refusals_at_the_same_time_are_all_answered(honest: Path, tmp_path: Path) -> None:
    names = [f"{number:0600}" for number in range(1000)]
    large = tmp_path / "large" / "1" / "model.onnx"
    write(large, [node("Cast", "x", name, to=TensorProto.INT64) for name in names], dict.fromkeys(names, TensorProto.INT64))

    def refusal(given: Trial) -> str:
        with pytest.raises(InvalidModel) as refused:
            Trials(LONG, None).try_version(given)
        return str(refused.value)

    with ThreadPoolExecutor(4) as pool:
        refusals = {*pool.map(refusal, [with_many_labels(honest), trial(large)] * 4)}
    assert len(refusals) == 2
    assert max(map(len, refusals)) < 3000


@pytest.mark.parametrize("labels", ["few", "many"])
def test_a_process_that_hangs_is_replaced(labels: str, honest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial_client.stop()
    monkeypatch.setattr(client, "DEAF_SECONDS", 3)
    monkeypatch.setattr(client, "EXIT_SECONDS", 0.1)
    monkeypatch.setattr(trials, "LATE_SECONDS", 0.5)
    process = stop_reading()
    if labels == "few":
        with pytest.raises(PassingFailure, match="does not answer"):
            Trials(0.1, None).try_version(trial(honest))
    else:
        with pytest.raises(InvalidModel, match="labels"):  # by the next one
            Trials(LONG, None).try_version(with_many_labels(honest))
    assert process.wait(LONG) == -signal.SIGKILL
    assert Trials(LONG, None).try_version(trial(honest)).max_batch_items == 64


def test_more_files_are_open_than_select_can_tell_apart(honest: Path) -> None:
    trial_client.stop()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, limits[1]))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert Trials(LONG, None).try_version(trial(honest)).max_batch_items == 64
    finally:
        for descriptor in opened:
            os.close(descriptor)
        trial_client.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("failing", ["thread", "process", "socket"])
def test_it_starts_once_there_are_threads_and_processes_again(failing: str, honest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread") if failing == "thread" else BlockingIOError("temporarily unavailable")

    trial_client.stop()
    with monkeypatch.context() as without:
        where = {"thread": (threading.Thread, "start"), "process": (subprocess, "Popen"), "socket": (socket, "socketpair")}
        without.setattr(*where[failing], fail)
        trial_client.start()
        with pytest.raises(PassingFailure, match="has ended"):
            Trials(LONG, None).try_version(trial(honest))
    assert Trials(LONG, None).try_version(trial(honest)).max_batch_items == 64


def test_that_no_process_can_be_started_is_no_fault_of_the_file(honest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fail)
    ours, theirs = Pipe()
    with ours, theirs:
        TrialServer(theirs)._asked(1, trial(honest), MEMORY_BYTES, LONG)
        _, ended = ours.recv()
    with pytest.raises(PassingFailure, match="no process can be started to try it: Resource temporarily unavailable"):
        Trials(LONG, None)._evaluated(ended, MEMORY_BYTES)


def test_more_memory_than_is_free_may_be_free_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large" / "1" / "model.onnx"
    HOSTILE["a large product"](path)
    monkeypatch.setattr(trials, "free_memory_bytes", lambda: 2**27)
    with pytest.raises(PassingFailure, match="needs more than 115 MiB"):
        Trials(LONG, None).try_version(trial(path))
    with pytest.raises(LoadError, match="needs more than 64 MiB") as refused:
        Trials(LONG, 2**26).try_version(trial(path))
    assert type(refused.value) is LoadError
