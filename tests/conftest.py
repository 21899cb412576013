"""What tests share: real trained and exported models, made once a run, and real servers on free ports."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other make small trainings crawl on a busy machine
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")  # as `convoy serve` does; read when gRPC starts

import contextlib
import fcntl
import functools
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import hypothesis
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.convert import pipeline
from export.data import datasets
from export.training import loop
from export.training.checkpoint import load_checkpoint
from export.training.recipes import Settings
from service.client import Client
from service.config import ServerConfig
from service.model import cpus
from service.model.contract import METADATA_KEY, Contract, Training, own_head
from service.model.input_spec import InputSpec
from service.model.loading import load_model
from service.server import Server
from tests.request_states import checked_states as checked_states

SEED = 0

hypothesis.settings.register_profile("convoy", deadline=None)  # how long an example takes depends on what else the machine does
hypothesis.settings.load_profile("convoy")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs so, and the programs that the tests stop by Ctrl-C would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def digits() -> datasets.Dataset:
    return datasets.load_dataset("digits", SEED)


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` has filled, once for all of xdist's processes: the first that needs it. Read it; do not change it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / name).exists():
            folder = tmp_path_factory.mktemp(name)
            make(folder)
            folder.rename(root / name)
    return root / name


@pytest.fixture(scope="session")
def known_operators() -> Iterator[None]:
    """PyTorch's exporter makes its table of operators, always the same, at each export: here once. That is a third of an export."""
    from torch.onnx._internal.exporter import _registration

    with pytest.MonkeyPatch.context() as patch:
        made = functools.cache(_registration.ONNXRegistry.from_torchlib)
        patch.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(made))
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, digits: datasets.Dataset, known_operators: None) -> Path:
    """The run folder of a short real training."""
    settings = Settings("article-cnn", epochs=6, seed=SEED)
    return made_once(tmp_path_factory, "run", lambda folder: loop.train(digits, settings, folder))


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory, run: Path, digits: datasets.Dataset) -> Path:
    """A real exported model. Read it, copy it; do not change it."""

    def export(folder: Path) -> None:
        pipeline.export(load_checkpoint(run), digits, folder, "digits")

    return made_once(tmp_path_factory, "exported", export) / "digits" / "1" / "model.onnx"


@pytest.fixture
def repository(tmp_path: Path, model_file: Path) -> Path:
    """A repository of a test's own, with one version of `digits`."""
    folder = tmp_path / "models"
    put(model_file, folder, "digits", 1)
    return folder


@pytest.fixture
def settings_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan takes settings as it finds them, for tests that write them and scan themselves."""
    monkeypatch.setattr("service.engine.settings_files.SETTLE_SECONDS", -float("inf"))


def put(model_file: Path, repository: Path, name: str, version: int) -> Path:
    """Puts a model file into a repository as a whole, as an export would."""
    staging = repository / name / f".staging-{version}"
    staging.mkdir(parents=True)
    (staging / "model.onnx").write_bytes(model_file.read_bytes())
    return staging.rename(repository / name / str(version)) / "model.onnx"


def _slow_model(path: Path, products: int) -> None:
    """Writes a servable model of 2x2 gray pictures that computes for long: `products` of 1000x1000 matrices a batch.

    Its answer is exact all the same: the label is whether the first pixel is below 128.
    """
    side = 1000
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], keepdims=0),
        helper.make_node("Expand", ["mean", "square"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{i}", "m0"], [f"raw{i}"]) for i in range(products)),
        *(helper.make_node("Tanh", [f"raw{i}"], [f"m{i + 1}"]) for i in range(products)),
        helper.make_node("ReduceMean", [f"m{products}"], ["burnt"], keepdims=0),
        helper.make_node("Mul", ["burnt", "zero"], ["nothing"]),
        helper.make_node("Reshape", ["pixels", "flat"], ["rows"]),
        helper.make_node("Gemm", ["rows", "weight", "bias"], ["scaled"]),
        helper.make_node("Add", ["scaled", "nothing"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    nodes.sort(key=lambda node: _depth(node.output[0]))
    constants: dict[str, np.ndarray] = {
        "square": np.array([side, side], np.int64),
        "zero": np.array(0, np.float32),
        "flat": np.array([-1, 4], np.int64),
        "weight": np.array([[-1, 1], [0, 0], [0, 0], [0, 0]], np.float32),
        "bias": np.array([127.5, -127.5], np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 2, 2, 1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("probabilities", "logits")],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    slow = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    contract = Contract(
        schema=2, name="slow", input=InputSpec(height=2, width=2, channels=1), heads=(own_head(("dark", "bright")),),
        precision="fp32", training=Training(data="none", network="none", epochs=0, seed=0), golden=(),
    )  # fmt: skip
    slow.metadata_props.add(key=METADATA_KEY, value=contract.to_json())
    onnx.checker.check_model(slow, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(slow, path)


SLOW_SECONDS = 0.12


@pytest.fixture(scope="session")
def slow_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose batches, of any size, take about SLOW_SECONDS on this machine. Read it, copy it; do not change it."""

    def write(folder: Path) -> None:
        path, products = folder / "model.onnx", 8
        _slow_model(path, products)
        seconds = load_model(path, "cpu", cpus.cpu_budget()).measure(1)[1]
        _slow_model(path, max(products, round(products * SLOW_SECONDS / seconds)))

    return made_once(tmp_path_factory, "slow", write) / "model.onnx"


def _depth(output: str) -> float:
    """Sorts the nodes of `_slow_model` so that each comes after what it reads."""
    if output.startswith("raw"):
        return 10 + 2 * int(output[3:])
    if output[0] == "m" and output[1:].isdigit():
        return 9 + 2 * int(output[1:])
    return {"pixels": 0, "mean": 1, "rows": 2, "scaled": 3, "burnt": 1e6, "nothing": 2e6, "logits": 3e6}.get(output, 4e6)


@pytest.fixture(params=["fast", "public"])
def transport_name(request: pytest.FixtureRequest) -> str:
    """Every test that starts a server runs on both transports."""
    name: str = request.param
    return name


Serve = Callable[..., Server]


@pytest.fixture
def serve(transport_name: str) -> Iterator[Serve]:
    """Starts servers in this process, on free ports, and stops them at the end."""
    with contextlib.ExitStack() as stack:
        defaults = {"grpc_port": 0, "http_port": 0, "transport": transport_name}

        def start(repository: Path, **settings: object) -> Server:
            server = Server(ServerConfig.model_validate({**defaults, "repository": repository, **settings}))
            server.start()
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def server(repository: Path, serve: Serve) -> Server:
    """A server of `repository`, in this process."""
    return serve(repository)


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of `server`."""
    with Client(f"127.0.0.1:{server.grpc_port}") as opened:
        yield opened


@pytest.fixture
def channel(repository: Path, serve: Serve) -> Iterator[grpc.Channel]:
    """A channel to a server of `repository`."""
    server = serve(repository)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened:
        yield opened


@dataclass
class ServerProcess:
    """`convoy serve` as a user runs it."""

    process: subprocess.Popen[str]
    grpc_port: int
    http_port: int
    log: Path

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


def convoy(*arguments: str | Path, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the program to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@contextlib.contextmanager
def full_disk(most_bytes: int = 10) -> Iterator[None]:
    """No file can grow beyond so many bytes in this process, nor in those that it starts."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
    with pytest.MonkeyPatch.context() as patch:
        # The bytecode of what is imported meanwhile would be cut off, and never be imported again (python/cpython#126606).
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


Spawn = Callable[..., ServerProcess]


def wait_until_ready(process: subprocess.Popen[Any], ready: Path, log: Path) -> dict[str, int]:
    """What a server's ready file has: its `pid`, `grpc_port` and `http_port`."""
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    ports: dict[str, int] = json.loads(ready.read_text())
    assert ports["pid"] == process.pid
    return ports


@pytest.fixture
def spawn(tmp_path: Path, transport_name: str) -> Iterator[Spawn]:
    """Starts `convoy serve` processes on free ports, waits until they are ready, and kills what is left at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(repository: Path, *arguments: str) -> ServerProcess:
        ready, log = tmp_path / f"ready-{len(started)}.json", tmp_path / f"serve-{len(started)}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "serve", str(repository), "--grpc-port", "0", "--http-port", "0",
                 "--transport", transport_name, "--ready-file", str(ready), "--lame-duck-seconds", "0", *arguments],
                stderr=output, stdout=output, text=True,
            )  # fmt: skip
        started.append(process)
        ports = wait_until_ready(process, ready, log)
        return ServerProcess(process, ports["grpc_port"], ports["http_port"], log)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
