"""Several workers under a supervisor: `convoy serve --workers N`, or a supervisor in this process where a test looks inside it."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from export.data.datasets import Dataset
from service.client import CallFailed, Client
from service.config import ServerConfig
from service.errors import LoadError, NotFound
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.workers import supervisor as supervision
from service.workers.supervisor import Supervisor
from tests.conftest import Spawn, convoy, put
from tests.integration.test_classify import classify_on
from tests.integration.test_foreign import go_round, write_loop
from tests.integration.test_program import bytes_of_dark_png
from tests.integration.test_repository import eventually
from tests.program import one_line

Supervise = Callable[..., Supervisor]


@pytest.fixture
def supervise(transport_name: str) -> Iterator[Supervise]:
    """Starts supervisors of two workers in this process, on free ports, and stops them at the end."""
    started: list[Supervisor] = []

    def start(repository: Path, *, ready: bool = True) -> Supervisor:
        config = ServerConfig(repository=repository, grpc_port=0, http_port=0, transport=transport_name, workers=2)
        supervisor = Supervisor(config, on_failure=lambda: None)
        supervisor.start()
        started.append(supervisor)
        if ready:
            eventually(lambda: supervisor.not_ready_reason() == "")
        return supervisor

    yield start
    for supervisor in started:
        supervisor.stop()


def classify(port: int, image: bytes, model: str = "digits") -> str:
    """The label of an image, asked for over a new connection, for which the kernel chooses a worker."""
    # Channels to one target share a connection by default, if the one before has not been taken down yet.
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        request = pb.ClassifyRequest(model=model, items=[pb.Item(encoded=image)])
        label: str = classify_on(channel)(request, timeout=30).results[0].predictions[0].label
        return label


def scrape(port: int) -> dict[tuple[str, ...], float]:
    """Every sample of /metrics, by its name and its label values, sorted by label."""
    text = fetch(port, "/metrics")[1]
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value for sample in samples}


def fetch(port: int, path: str, body: str | None = None) -> tuple[int, str]:
    """The status and the body of a response: to a GET, or to a POST of `body`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET" if body is None else "POST", path, body)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def children(pid: int) -> list[int]:
    """The running child processes, without the one in which models are tried (`engine/trial_server.py`)."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended has no children
            found += map(int, (task / "children").read_text().split())
    return sorted(child for child in found if b"trial_server" not in _command(child))


def _command(pid: int) -> bytes:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def handled(metrics: dict[tuple[str, ...], float]) -> float:
    return metrics["grpc_server_handled_total", "OK", "Classify", "convoy.v1.Classifier", "unary"]


def test_both_workers_answer_and_metrics_are_summed(repository: Path, supervise: Supervise, digits: Dataset) -> None:
    supervisor = supervise(repository)
    requests = 40
    for index in range(requests):
        classify(supervisor.grpc_port, digits.test.encoded(index))
    metrics = scrape(supervisor._http.port)
    assert handled(metrics) == requests
    assert metrics["convoy_items_total", "digits", "1"] == requests
    assert metrics["convoy_phase_seconds_count", "digits", "inference", "1"] == requests
    predictions = [value for key, value in metrics.items() if key[0] == "convoy_predictions_total"]
    assert sum(predictions) == requests
    assert metrics["convoy_model_loads_total", "digits", "ready"] == 2
    assert [value for key, value in metrics.items() if key[0] == "convoy_model_info"] == [1]
    busy = {key[1]: value for key, value in metrics.items() if key[0] == "convoy_transport_busy_seconds_total"}
    assert busy.keys() == {"1", "2"}
    assert all(busy.values())
    assert (metrics["convoy_workers",], metrics["convoy_workers_ready",]) == (2, 2)
    shares = [
        next(family for family in worker.metrics if family.name == "convoy_items").samples[0].value
        for worker in supervisor._workers.values()
    ]
    assert sum(shares) == requests
    assert all(0 < share < requests for share in shares), "a share of the connections each; all to one is 1 in 2^39"


def test_clients_of_several_connections_use_all_workers_alike(repository: Path, supervise: Supervise, digits: Dataset) -> None:
    supervisor = supervise(repository)
    images = [digits.test.encoded(index) for index in range(8)]
    with contextlib.ExitStack() as clients:
        total = 0
        for connections in (2, 4, 8, 16, 64):
            client = clients.enter_context(Client(f"127.0.0.1:{supervisor.grpc_port}", connections=connections))
            for _ in range(connections):
                client.classify(images, "digits")
            total += connections
            counts = [worker.connections.count(worker.pid) for worker in supervisor._workers.values()]
            assert counts == [total // 2] * 2
        metrics = scrape(supervisor._http.port)
        assert [metrics["convoy_worker_connections", number] for number in ("1", "2")] == counts
        answers = [
            next(family for family in worker.metrics if family.name == "convoy_items").samples[0].value
            for worker in supervisor._workers.values()
        ]
        assert answers == [total // 2 * len(images)] * 2


def test_where_grpcio_takes_no_connections_the_kernel_spreads_them(
    repository: Path, supervise: Supervise, digits: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervision, "can_pass_connections", lambda: False)
    supervisor = supervise(repository)
    for index in range(20):
        classify(supervisor.grpc_port, digits.test.encoded(index))
    metrics = scrape(supervisor._http.port)
    assert handled(metrics) == 20
    assert ("convoy_worker_connections", "1") not in metrics
    assert "the kernel spreads connections over them" in caplog.text


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_one_worker_has_no_supervisor(repository: Path, spawn: Spawn) -> None:
    server = spawn(repository, "--workers", "1")
    # The process in which versions are tried is forked, and so has the server's own command line; a worker is started anew.
    command = command_line(server.process.pid)
    assert [command_line(child) for child in children(server.process.pid)] in ([], [command])
    assert ("convoy_workers",) not in scrape(server.http_port)


def test_two_workers_as_a_user_runs_them(repository: Path, spawn: Spawn, digits: Dataset) -> None:
    server = spawn(repository, "--workers", "2")
    assert len(children(server.process.pid)) == 2
    assert convoy("classify", *_digit(repository, digits), "--server", f"127.0.0.1:{server.grpc_port}").returncode == 0
    assert fetch(server.http_port, "/readyz") == (200, "ok\n")
    assert fetch(server.http_port, "/livez") == (200, "ok\n")
    status, text = fetch(server.http_port, "/nope")
    assert status == 404, "a worker has answered"
    assert "not found" in text.lower()
    assert fetch(server.http_port, "/v2/models/digits")[0] == 200
    counted = {
        key[1:]: value for key, value in scrape(server.http_port).items() if key[0] == "http_server_request_duration_seconds_count"
    }
    assert (counted["GET", "404", ""], counted["GET", "200", "/v2/models/<model>"]) == (1, 1), "once, not by supervisor and worker"
    workers = children(server.process.pid)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(30) == 0
    assert not any(alive(pid) for pid in workers)
    log = server.log.read_text()
    assert "Traceback" not in log
    assert len(re.findall(r" stopped .*worker=[12]", log)) == 2
    assert not list(server.log.parent.glob("ready-*.json"))


def _digit(folder: Path, digits: Dataset) -> list[str]:
    path = folder.parent / "digit.png"
    path.write_bytes(digits.test.encoded(0))
    return [str(path), "--model", "digits"]


class Load:
    """Clients that each send one request after the other until `stop`."""

    def __init__(self, port: int, image: bytes, clients: int) -> None:
        self.answered = 0
        self.failures: list[CallFailed] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(port, image)) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, port: int, image: bytes) -> None:
        with Client(f"127.0.0.1:{port}") as client:
            while not self._stop.wait(0.01):
                try:
                    client.classify([image], "digits")
                    with self._lock:
                        self.answered += 1
                except CallFailed as error:
                    self.failures.append(error)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def test_a_worker_that_is_killed_is_replaced_while_the_other_answers(repository: Path, spawn: Spawn, digits: Dataset) -> None:
    server = spawn(repository, "--workers", "2")
    load = Load(server.grpc_port, digits.test.encoded(0), clients=4)
    try:
        eventually(lambda: load.answered > 50)
        before = scrape(server.http_port)
        workers = children(server.process.pid)
        os.kill(workers[0], signal.SIGKILL)
        eventually(lambda: workers[0] not in children(server.process.pid))
        assert fetch(server.http_port, "/readyz") == (200, "ok\n")
        after = scrape(server.http_port)
        assert handled(after) >= handled(before), "what a dead worker has counted still counts"
        answered = load.answered
        eventually(lambda: load.answered > answered + 20)
        eventually(lambda: scrape(server.http_port)["convoy_workers_ready",] == 2)
        eventually(lambda: load.answered > answered + 50)
    finally:
        load.stop()
    metrics = scrape(server.http_port)
    assert metrics["convoy_worker_restarts_total",] == 1
    assert handled(before) <= handled(metrics) <= load.answered
    assert workers[1] in children(server.process.pid)
    assert {failure.code for failure in load.failures} <= {"UNAVAILABLE"}
    assert len(load.failures) <= 8, "a client whose worker died goes to the other"
    assert f"worker 1 (pid {workers[0]}) was killed by signal 9" in server.log.read_text() or (
        f"worker 2 (pid {workers[0]}) was killed by signal 9" in server.log.read_text()
    )
    assert server.terminate() == 0


def test_all_workers_finish_running_requests(tmp_path: Path, spawn: Spawn, slow_file: Path) -> None:
    put(slow_file, tmp_path / "models", "slow", 1)
    (tmp_path / "models" / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    server = spawn(tmp_path / "models", "--workers", "2")
    answers: list[str] = []
    clients = 8

    def ask() -> None:
        with Client(f"127.0.0.1:{server.grpc_port}", timeout_seconds=1e5) as client:
            answers.append(client.classify([bytes_of_dark_png()] * 2, "slow").results[1][0].label)

    def ask_over_http() -> None:
        tensor = {"name": "image", "datatype": "UINT8", "shape": [2, 2, 2, 1], "data": [0] * 8}
        wanted = {"name": "probabilities", "parameters": {"classification": 1}}
        body = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/v2/models/slow/infer", body, 60) as response:
            answers.append(json.load(response)["outputs"][0]["data"][1].split(":")[2])

    asking = [threading.Thread(target=ask if number % 2 else ask_over_http) for number in range(clients)]
    for each in asking:
        each.start()
    # Answers are counted first: those that come during the scrape must not stand for requests that have not arrived.
    eventually(lambda: clients - len(answers) == scrape(server.http_port)["convoy_inflight_requests", "slow"])
    assert len(answers) < clients, "the models must still be computing"
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: fetch(server.http_port, "/readyz") == (503, "draining\n"))
    assert server.process.wait(60) == 0
    for each in asking:
        each.join(10)
    assert answers == ["dark"] * clients


def test_no_request_is_lost_when_the_server_drains_under_load(repository: Path, spawn: Spawn, digits: Dataset) -> None:
    server = spawn(repository, "--workers", "2")
    load = Load(server.grpc_port, digits.test.encoded(0), clients=4)
    try:
        eventually(lambda: load.answered > 50)
        assert server.terminate() == 0
    finally:
        load.stop()
    assert load.failures
    # C core cancels what reaches it between the start of its shutdown and the end of the connection: seldom, and not worked on.
    assert {failure.code for failure in load.failures} <= {"UNAVAILABLE", "CANCELLED"}
    # A connection that was never made has lost no request: the kernel resets those that waited to be accepted when the port closed.
    sent = {failure.message for failure in load.failures if "connections to all backends failing" not in failure.message}
    assert not any("Socket closed" in message or "reset" in message for message in sent), sent


def test_a_port_in_use_is_one_clear_line(repository: Path, spawn: Spawn) -> None:
    ports = {"--grpc-port": "0", "--http-port": "0"}
    for running in (spawn(repository), spawn(repository, "--workers", "2")):
        for flag, port in (("--grpc-port", running.grpc_port), ("--http-port", running.http_port)):
            flags = [part for pair in (ports | {flag: str(port)}).items() for part in pair]
            refused = one_line(convoy("serve", repository, "--workers", "2", *flags))
            assert f":{port}: the port is in use (port 0 takes a free one)" in refused
    assert "the port is in use" in one_line(convoy("serve", repository, "--grpc-port", str(running.grpc_port), "--http-port", "0"))
    assert scrape(running.http_port)["convoy_workers_ready",] == 2


def test_the_port_is_reserved_while_the_workers_load(repository: Path, supervise: Supervise) -> None:
    supervisor = supervise(repository, ready=False)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", supervisor.grpc_port))
    assert supervisor.not_ready_reason() == "worker 1: loading; worker 2: loading"
    eventually(lambda: supervisor.not_ready_reason() == "")


def test_workers_that_cannot_start_end_the_server_with_one_clear_line(repository: Path, tmp_path: Path) -> None:
    serve: list[str | Path] = ["serve", repository, "--grpc-port", "0", "--http-port", "0", "--workers", "2"]
    assert "'0' is not accepted: give auto or an integer from 1 to 256" in one_line(convoy(*serve[:-1], "0"))
    assert "provider 'cuda' is not in the installed ONNX Runtime" in one_line(convoy(*serve, "--provider", "cuda"))
    assert "no repository folder" in one_line(convoy("serve", tmp_path / "nowhere", *serve[2:]))
    assert "must be PEM files that belong together" in one_line(
        convoy(*serve, "--tls-cert", __file__, "--tls-key", __file__, timeout=30)
    )
    slow = convoy(*serve, "--worker-start-seconds", "0.01", "--log-level", "error")
    assert re.search(r"worker [12] \(pid \d+\) was killed: it did not load its models within 0\.01 s", one_line(slow))

    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'service.workers.worker' in str(sys.orig_argv):\n    os.kill(os.getpid(), 9)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    killed = convoy(*serve, "--log-level", "error", PYTHONPATH=path)
    assert re.search(r"worker [12] \(pid \d+\) was killed by signal 9 \(Killed\)", one_line(killed))

    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['onnxruntime'] = None\n")
    assert "package 'onnxruntime' is missing: install Convoy's extra" in one_line(convoy(*serve, PYTHONPATH=path))


@pytest.mark.parametrize("signals", [[signal.SIGKILL], [signal.SIGTERM, signal.SIGTERM]])
def test_no_worker_outlives_the_supervisor(tmp_path: Path, spawn: Spawn, slow_file: Path, signals: list[signal.Signals]) -> None:
    put(slow_file, tmp_path / "models", "slow", 1)
    (tmp_path / "models" / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    server = spawn(tmp_path / "models", "--workers", "2")
    workers = children(server.process.pid)
    assert len(workers) == 2

    def ask() -> None:
        with Client(f"127.0.0.1:{server.grpc_port}", timeout_seconds=1e5) as client, pytest.raises(CallFailed, match="UNAVAILABLE"):
            client.classify([bytes_of_dark_png()] * 200, "slow")

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: scrape(server.http_port)["convoy_inflight_requests", "slow"] == 1)
    for number in signals:
        server.process.send_signal(number)
        time.sleep(0.2)
    assert server.process.wait(10) == (1 if len(signals) == 2 else -signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in workers))
    assert bool(list(tmp_path.glob("ready-*"))) == (len(signals) == 1), "nobody is left to remove it after SIGKILL alone"
    asking.join(30)


def test_a_worker_that_gets_sigterm_drains_and_is_replaced(repository: Path, spawn: Spawn, digits: Dataset) -> None:
    server = spawn(repository, "--workers", "2")
    for index in range(10):
        classify(server.grpc_port, digits.test.encoded(index))
    workers = children(server.process.pid)
    os.kill(workers[0], signal.SIGTERM)
    eventually(lambda: workers[0] not in children(server.process.pid))
    assert handled(scrape(server.http_port)) == 10, "its last report has all that it counted"
    eventually(lambda: scrape(server.http_port)["convoy_workers_ready",] == 2)
    assert f"(pid {workers[0]}) exited with code 0; restarting at once" in server.log.read_text()
    assert server.terminate() == 0


def test_a_worker_that_is_stopped_is_replaced_and_http_requests_go_to_the_other(
    repository: Path, supervise: Supervise, digits: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervision, "SCRAPE_SECONDS", 0.5)
    supervisor = supervise(repository)
    classify(supervisor.grpc_port, digits.test.encoded(0))
    assert handled(scrape(supervisor._http.port)) == 1
    stuck = supervisor._workers[1].pid
    os.kill(stuck, signal.SIGSTOP)
    assert handled(scrape(supervisor._http.port)) == 1, "a scrape makes do with what it said last"
    pixels = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": [0] * 784}
    body = json.dumps({"inputs": [pixels]})
    for _ in range(2):  # one of two in turn has the stopped worker, which is noticed; a load goes to every worker, and waits
        assert fetch(supervisor._http.port, "/v2/models/digits")[0] == 200
        assert fetch(supervisor._http.port, "/v2/models/digits/infer", body)[0] == 200
    eventually(lambda: 1 in supervisor._workers and supervisor._workers[1].pid != stuck and supervisor.not_ready_reason() == "")
    assert f"worker 1 (pid {stuck}) was killed: it is stopped, for 2.5 s; restarting at once" in caplog.text
    assert not alive(stuck)


def test_a_worker_that_is_busy_or_was_paused_with_all_others_is_not_replaced(
    repository: Path, spawn: Spawn, digits: Dataset
) -> None:
    """The supervisor is stopped too, and goes on first: it has missed every answer for longer than the limit."""
    server = spawn(repository, "--workers", "2")
    workers = children(server.process.pid)
    for pid in (server.process.pid, *workers):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4)
    os.kill(server.process.pid, signal.SIGCONT)
    time.sleep(0.5)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    for index in range(10):
        classify(server.grpc_port, digits.test.encoded(index))
    eventually(lambda: scrape(server.http_port)["convoy_workers_ready",] == 2)
    assert children(server.process.pid) == workers
    assert server.terminate() == 0


@pytest.mark.slow
def test_a_worker_whose_model_never_ends_is_replaced(
    tmp_path: Path, supervise: Supervise, caplog: pytest.LogCaptureFixture
) -> None:
    write_loop(tmp_path / "loop" / "1" / "model.onnx")
    supervisor = supervise(tmp_path)
    before = {worker.pid for worker in supervisor._workers.values()}
    with grpc.insecure_channel(f"127.0.0.1:{supervisor.grpc_port}") as channel, pytest.raises(grpc.RpcError):
        go_round(channel, 1e18, 5)
    eventually(lambda: len(before & {worker.pid for worker in supervisor._workers.values()}) == 1)
    eventually(
        lambda: (
            "was killed: model 'loop' blocks the gRPC thread: a batch has been running for over 30 s; restarting at once"
            in caplog.text
        )
    )
    eventually(lambda: supervisor._workers.keys() == {1, 2} and supervisor.not_ready_reason() == "")


def test_a_control_call_is_carried_out_by_all_workers_and_by_restarted_ones(
    repository: Path, model_file: Path, supervise: Supervise, digits: Dataset
) -> None:
    put(model_file, repository, "twin", 1)
    supervisor = supervise(repository)
    port, image = supervisor.grpc_port, digits.test.encoded(0)

    def outcomes() -> set[str]:
        found = set()
        for _ in range(20):
            try:
                found.add(classify(port, image, "twin"))
            except grpc.RpcError as error:
                refused: Any = error
                found.add(refused.code().name)
        return found

    [label] = outcomes()
    supervisor._broadcast("unload", "twin")
    assert outcomes() == {"NOT_FOUND"}
    first = supervisor._workers[1].pid
    os.kill(first, signal.SIGKILL)
    eventually(lambda: 1 in supervisor._workers and supervisor._workers[1].pid != first and supervisor._workers[1].listening)
    assert outcomes() == {"NOT_FOUND"}
    with pytest.raises(NotFound, match="no model named 'cats' is in the repository"):
        supervisor._broadcast("unload", "cats")
    (repository / "twin" / "2").mkdir()
    (repository / "twin" / "2" / "model.onnx").write_text("no model")
    with pytest.raises(LoadError, match="version 2"):
        supervisor._broadcast("load", "twin")
    assert outcomes() == {label}, "the load took the unload back, though it failed"
    assert supervisor._replay == []


def test_an_empty_repository_becomes_ready_on_all_workers_when_a_model_is_added(
    tmp_path: Path, model_file: Path, supervise: Supervise, digits: Dataset
) -> None:
    (tmp_path / "models").mkdir()
    supervisor = supervise(tmp_path / "models", ready=False)
    eventually(lambda: supervisor.not_ready_reason() == "worker 1: no model is ready; worker 2: no model is ready")
    status, reason = fetch(supervisor._http.port, "/readyz")
    assert (status, reason) == (503, "worker 1: no model is ready; worker 2: no model is ready\n")
    put(model_file, tmp_path / "models", "digits", 1)
    eventually(lambda: supervisor.not_ready_reason() == "")
    assert {classify(supervisor.grpc_port, digits.test.encoded(0)) for _ in range(8)} == {str(digits.test.labels[0])}


def test_the_workers_share_the_cpus(tmp_path: Path, slow_file: Path, supervise: Supervise) -> None:
    put(slow_file, tmp_path / "slow", "slow", 1)
    (tmp_path / "slow" / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    supervisor = supervise(tmp_path / "slow")
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert scrape(supervisor._http.port)["convoy_ort_threads", "slow"] == 2 * share
