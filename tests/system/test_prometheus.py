"""A real Prometheus that scrapes real servers under load: every panel has data, every alert is answered or fires.

What does not come about here: a GPU (the row GPU is left out, by name), CUDA that fails (ConvoyProviderFellBack), a week of
predictions (ConvoyPredictionDrift) and a worker that stays away (ConvoyWorkersMissing). Of those three alerts the selectors must
have data here; that they fire is for the unit tests of the rules. ConvoyAbsent is asked about the time before the test.
"""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from export.data.datasets import Dataset
from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.conftest import ServerProcess, Spawn, put
from tests.integration.test_isolation import POISON, poisonable
from tests.promql import NO_GPU_HERE, RULES, alerts, panels, rules, selectors, variables

pytestmark = [pytest.mark.system, pytest.mark.timeout(600), pytest.mark.parametrize("transport_name", ["fast"])]

PATIENCE_SECONDS = 180
NOT_PROVOKED = {"ConvoyProviderFellBack", "ConvoyPredictionDrift", "ConvoyWorkersMissing", "ConvoyAbsent"}
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Prometheus:
    """A Prometheus of this test's own. It scrapes and evaluates each second, so that nobody waits for it."""

    def __init__(self, folder: Path, targets: dict[str, int]) -> None:
        """`targets` has the HTTP port of each pod."""
        program = shutil.which("prometheus")
        assert program is not None, "prometheus is not installed: apt-get install prometheus"
        rule_file = folder / "rules.yaml"
        rule_file.write_text(re.sub(r"interval: 1m\b", "interval: 1s", RULES.read_text()))
        scraped = [{"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": "test", "pod": pod}} for pod, port in targets.items()]
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rule_file)],
            "scrape_configs": [{"job_name": "convoy", "static_configs": scraped}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self._log = folder / "prometheus.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [program, f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
                 "--web.listen-address=127.0.0.1:0", "--enable-feature=exemplar-storage"],
                stdout=log, stderr=log,
            )  # fmt: skip
        self.url = f"http://{self._address()}"

    def _address(self) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self._log.read_text()
            found = re.search(r'msg="Listening on" address=(\S+)', self._log.read_text())
            if found is not None and "Server is ready" in self._log.read_text():
                return found[1]
            time.sleep(0.1)
        raise AssertionError(self._log.read_text())

    def get(self, path: str, **parameters: str) -> Any:
        """The data of one answer of the API."""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as response:
            return json.load(response)["data"]

    def has(self, expr: str, **parameters: str) -> bool:
        """Whether an expression returns a number; NaN, as of nothing divided by nothing, is none."""
        return any(sample["value"][1] != "NaN" for sample in self.get("query", query=expr, **parameters)["result"])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)


class Load:
    """Clients that go on until they are stopped: one that is right, one that is wrong, and a flood of them when it is asked for."""

    def __init__(self, server: ServerProcess, digits: Dataset) -> None:
        self._stop = threading.Event()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        self._classify = self._channel.unary_unary(
            "/convoy.v1.Classifier/Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
        )
        picture = pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=digits.test.encoded(0))])
        broken = pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=b"nonsense")])
        poisonous = pb.ClassifyRequest(model="fragile", items=[pb.Item(pixels=bytes([POISON, 0, 0, 0]))])
        self._infer_url = f"http://127.0.0.1:{server.http_port}/v2/models/digits/infer"
        self._file = digits.test.encoded(0)
        self._threads: list[threading.Thread] = []
        self._start(self._client, picture, 0.1)
        self._start(self._client, broken, 0.3)
        self._start(self._client, poisonous, 0.1)
        self._start(self._http_client, 0.3)

    def flood(self) -> None:
        """More requests for the slow model than it computes and its queue holds."""
        for _ in range(24):
            self._start(self._client, pb.ClassifyRequest(model="slow", items=[pb.Item(pixels=bytes(4))]), 0.1)

    def _start(self, client: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=client, args=arguments))
        self._threads[-1].start()

    def _client(self, request: pb.ClassifyRequest, pause_seconds: float) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(grpc.RpcError):  # most of them are there to be refused
                self._classify(request, timeout=30, metadata=(("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),))
            self._stop.wait(pause_seconds)

    def _http_client(self, pause_seconds: float) -> None:
        while not self._stop.is_set():
            asked = urllib.request.Request(self._infer_url, self._file, {"Inference-Header-Content-Length": "0"})
            with urllib.request.urlopen(asked, timeout=30) as response:
                response.read()
            self._stop.wait(pause_seconds)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._channel.close()


class Restarting:
    """A server without a model, on one port, that is ended whenever Prometheus has seen it."""

    def __init__(self, folder: Path) -> None:
        (folder / "empty").mkdir()
        self._command = [sys.executable, "-m", "service.cli", "serve", str(folder / "empty"), "--grpc-port", "0"]
        self._log = folder / "empty.log"
        self.http_port = 0
        self.start()

    def start(self) -> None:
        with self._log.open("w") as log:
            self.process = subprocess.Popen([*self._command, "--http-port", str(self.http_port)], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while (found := re.search(r"HTTP on 127\.0\.0\.1:(\d+)", self._log.read_text())) is None:
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)
        self.http_port = int(found[1])

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(timeout=30) == 0, self._log.read_text()


@dataclass
class World:
    """A Prometheus and what it scrapes: a busy server, one without a model, one with workers, and one that is about to end."""

    prometheus: Prometheus
    load: Load
    empty: Restarting
    ending: ServerProcess
    repository: Path


@pytest.fixture
def world(tmp_path: Path, repository: Path, slow_file: Path, spawn: Spawn, digits: Dataset) -> Iterator[World]:
    put(slow_file, repository, "slow", 1)
    (repository / "slow" / "serving.toml").write_text("max_batch_size = 8\nmax_queue_items = 8\nmax_request_items = 8\n")
    poisonable(repository / "fragile" / "1" / "model.onnx")
    with contextlib.ExitStack() as stack:
        server, pair, ending = spawn(repository), spawn(repository, "--workers", "2"), spawn(repository)
        empty = Restarting(tmp_path)
        stack.callback(empty.stop)
        load = Load(server, digits)
        stack.callback(load.stop)
        pods = {"busy": server.http_port, "empty": empty.http_port, "pair": pair.http_port, "ending": ending.http_port}
        prometheus = Prometheus(tmp_path, pods)
        stack.callback(prometheus.stop)
        yield World(prometheus, load, empty, ending, repository)


def wait_for(missing: Callable[[], object]) -> None:
    """Waits until nothing is missing."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left := missing():
        assert time.monotonic() < deadline, f"Prometheus has no data for: {left}"
        time.sleep(1)


def wait_for_data(prometheus: Prometheus, expressions: dict[str, str]) -> None:
    """Waits until every expression, given by its name, returns a number."""
    wait_for(lambda: {name: expr for name, expr in expressions.items() if not prometheus.has(expr)})


def test_every_panel_and_every_alert_has_its_data(world: World) -> None:
    prometheus = world.prometheus
    wait_for_data(prometheus, {name: selector for name, (selector, _) in variables().items()})
    for name, (selector, label) in variables().items():
        assert prometheus.get(f"label/{label}/values", **{"match[]": selector}), f"the variable {name} has no values"

    shown = {name: expr for name, expr in panels().items() if not {found.name for found in selectors(expr)} & NO_GPU_HERE}
    assert {name.split()[0] for name in panels().keys() - shown.keys()} == {"GPU"}
    put_broken_version(world.repository)
    wait_for_data(prometheus, shown)
    wait_for_data(prometheus, {rule["record"]: rule["record"] for rule in rules() if "record" in rule})

    assert world.ending.terminate() == 0
    for starts in range(1, 4):
        world.empty.restart()
        wait_for_data(prometheus, {"restart": f'changes(process_start_time_seconds{{pod="empty"}}[10m]) == {starts}'})
    world.load.flood()
    assert prometheus.has("absent(convoy_build_info)", time=str(time.time() - 86400)), "ConvoyAbsent, before any server ran"
    provoked = {(rule["alert"], rule["labels"]["severity"]): rule for rule in alerts() if rule["alert"] not in NOT_PROVOKED}
    wait_for(lambda: provoked.keys() - active(prometheus))
    assert active(prometheus) == provoked.keys()
    asked = {found.prettify() for rule in alerts() if rule["alert"] in NOT_PROVOKED for found in selectors(rule["expr"])}
    wait_for_data(prometheus, {selector: selector for selector in asked})
    for group in prometheus.get("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule

    now = time.time()
    exemplars = prometheus.get("query_exemplars", query="convoy_phase_seconds_bucket", start=str(now - 600), end=str(now))
    assert {exemplar["labels"]["trace_id"] for series in exemplars for exemplar in series["exemplars"]} == {TRACE}


def active(prometheus: Prometheus) -> set[tuple[str, str]]:
    """The alerts whose expressions return something now, for long enough or not, by name and severity."""
    return {(alert["labels"]["alertname"], alert["labels"]["severity"]) for alert in prometheus.get("alerts")["alerts"]}


def put_broken_version(repository: Path) -> None:
    """A version 2 that cannot be loaded, beside version 1 that goes on serving."""
    staging = repository / "digits" / ".broken"
    staging.mkdir()
    (staging / "model.onnx").write_bytes(b"no model at all")
    staging.rename(repository / "digits" / "2")
