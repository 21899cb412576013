"""The program `convoy`, as processes."""

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc

from export.data.datasets import Dataset
from service.client import CallFailed, Client
from service.config import ServerConfig
from service.errors import UserError
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.server import Server
from tests.conftest import Spawn, convoy, put
from tests.hostile_models import endless_loop
from tests.program import convoy_here, one_line


@pytest.fixture
def transport_name() -> str:
    """What the command line says is nothing to a transport: once is enough."""
    return "fast"


def test_sigterm_drains_finishes_what_is_in_hand_and_exits_with_0(tmp_path: Path, spawn: Spawn, slow_file: Path) -> None:
    put(slow_file, tmp_path / "models", "slow", 1)
    (tmp_path / "models" / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    server = spawn(tmp_path / "models")
    answers: list[str] = []

    def ask() -> None:
        with Client(f"127.0.0.1:{server.grpc_port}") as client:
            answers.append(client.classify([bytes_of_dark_png()] * 8, "slow").results[0][0].label)

    asking = threading.Thread(target=ask)
    asking.start()
    in_flight = 'convoy_inflight_requests{model="slow"} 1.0'
    while in_flight not in urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics", timeout=10).read().decode():
        time.sleep(0.01)
    assert answers == [], "the model must still be computing"
    assert server.terminate() == 0
    asking.join(10)
    assert answers == ["dark"]
    assert "draining" in server.log.read_text()
    assert not list(tmp_path.glob("ready-*.json"))


def bytes_of_dark_png() -> bytes:
    import numpy as np

    from service.model.preprocessing import encode_png

    return encode_png(np.zeros((2, 2), np.uint8))


def test_an_idle_keep_alive_connection_and_open_streams_do_not_hold_the_drain(repository: Path, spawn: Spawn) -> None:
    server = spawn(repository)
    scraper = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
    scraper.request("GET", "/metrics")
    assert scraper.getresponse().read()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        streams: list[Any] = [
            channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
            channel.stream_stream("/grpc.health.v1.Health/Watch"),
        ]
        release = threading.Event()
        calls = [stream(_nothing_until(release), timeout=60) for stream in streams]
        time.sleep(0.3)
        start = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - start < 5
        release.set()
        assert [call.code().name for call in calls] == ["OK", "OK"]
    scraper.close()


def _nothing_until(event: threading.Event) -> Iterator[bytes]:
    event.wait(30)
    yield from ()


def test_while_draining_liveness_holds_health_says_not_serving_and_new_requests_are_told_when_to_come_back(
    tmp_path: Path, spawn: Spawn, slow_file: Path
) -> None:
    put(slow_file, tmp_path / "models", "slow", 1)
    (tmp_path / "models" / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    server = spawn(tmp_path / "models")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [("grpc.enable_retries", 0)]) as channel:
        classify = channel.unary_unary(
            "/convoy.v1.Classifier/Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
        )
        request = pb.ClassifyRequest(model="slow", items=[pb.Item(encoded=bytes_of_dark_png())] * 12)
        in_hand = classify.future(request, timeout=60)
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        health: Any = health_pb2_grpc.HealthStub(channel)
        statuses = [
            health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5).status for name in ("", "slow", "liveness")
        ]
        assert statuses == [2, 2, 1]
        with pytest.raises(grpc.RpcError) as refused:
            classify(request, timeout=5)
        error: Any = refused.value
        assert (error.code().name, error.details()) == ("UNAVAILABLE", "the server is draining")
        assert "grpc-retry-pushback-ms" in dict(error.trailing_metadata())
        assert len(in_hand.result().results) == 12
    assert server.process.wait(30) == 0


def test_what_is_not_finished_in_time_holds_nobody_up(tmp_path: Path, spawn: Spawn, slow_file: Path) -> None:
    put(slow_file, tmp_path / "models", "slow", 1)
    (tmp_path / "models" / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    server = spawn(tmp_path / "models", "--drain-seconds", "0.1")
    tensor = {"name": "image", "datatype": "UINT8", "shape": [200, 2, 2, 1], "data": [0] * 800}
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    connection.request("POST", "/v2/models/slow/infer", json.dumps({"inputs": [tensor]}))
    running = f"http://127.0.0.1:{server.http_port}/metrics"
    deadline = time.monotonic() + 30
    while b'convoy_inflight_requests{model="slow"} 1.0' not in urllib.request.urlopen(running, timeout=10).read():
        assert time.monotonic() < deadline
    assert server.terminate() == 0
    assert "some requests were not finished within 0.1 s and are cancelled" in server.log.read_text()
    connection.close()


def test_a_server_that_is_loading_leaves_when_it_is_told_to(repository: Path, tmp_path: Path) -> None:
    endless_loop(repository / "slow" / "1" / "model.onnx")
    log = tmp_path / "log"
    with log.open("w") as to:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", str(repository), "--grpc-port", "0", "--http-port", "0"], stderr=to
        )
    deadline = time.monotonic() + 60
    while "model digits version 1 is ready" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert "stopped while models were being loaded" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_server_that_loads_a_new_model_leaves_when_it_is_told_to(repository: Path, spawn: Spawn) -> None:
    server = spawn(repository)
    endless_loop(repository / "slow" / "1" / "model.onnx")
    deadline = time.monotonic() + 60
    while "model slow version 1: loading" not in server.log.read_text():
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.05)
    assert server.terminate() == 0
    assert "stopped while models were being loaded" in server.log.read_text()


def test_a_second_signal_ends_at_once(tmp_path: Path, spawn: Spawn, slow_file: Path) -> None:
    put(slow_file, tmp_path / "models", "slow", 1)
    (tmp_path / "models" / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    server = spawn(tmp_path / "models")
    with Client(f"127.0.0.1:{server.grpc_port}", timeout_seconds=1e5) as client:

        def ask() -> None:
            with pytest.raises(CallFailed, match="UNAVAILABLE"):
                client.classify([bytes_of_dark_png()] * 100, "slow")

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.3)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(5) == 1
        asking.join(10)


def test_ctrl_c_is_as_good_as_sigterm(repository: Path, spawn: Spawn) -> None:
    server = spawn(repository)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(30) == 0
    assert "Traceback" not in server.log.read_text()


_POLL_RAISES = """
import sys
from pathlib import Path
import grpc
from grpc._cython import cygrpc
from service.config import ServerConfig
from service.server import Server

lacking = False

class Queue(cygrpc.CompletionQueue):
    def poll(self, deadline=None):
        if lacking:
            raise MemoryError  # as it does when a message cannot be allocated
        return super().poll(deadline)

cygrpc.CompletionQueue = Queue
server = Server(ServerConfig(repository=Path(sys.argv[1]), grpc_port=0, http_port=0))
server.start()
lacking = True
channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
call = channel.unary_unary("/convoy.v1.Classifier/Classify").future(b"")
sys.stdin.read()
"""


def test_a_server_whose_transport_has_died_does_not_go_on_as_if_it_answered(repository: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _POLL_RAISES, str(repository)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert "the thread grpc has ended, exiting at once: MemoryError" in process.stderr.read()


def test_the_server_needs_neither_torch_nor_onnx(repository: Path) -> None:
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name.split('.')[0] not in {'torch', 'onnx', 'sklearn', 'matplotlib', 'export'}, name\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from pathlib import Path\n"
        "from service.config import ServerConfig\n"
        "from service.server import Server\n"
        "server = Server(ServerConfig(repository=Path(sys.argv[1]), grpc_port=0, http_port=0))\n"
        "server.start(); server.stop()\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(repository)], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_serve_says_what_is_wrong_in_one_line(repository: Path, tmp_path: Path, spawn: Spawn) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, by those who are started too
    running = spawn(repository)
    ports = ["--grpc-port", "0", "--http-port", "0"]
    port = str(running.grpc_port)
    assert "the port is in use" in one_line(convoy("serve", repository, "--grpc-port", port, "--http-port", "0"))
    port = str(running.http_port)
    assert "the port is in use" in one_line(convoy("serve", repository, "--grpc-port", "0", "--http-port", port))
    assert "no repository folder" in one_line(convoy("serve", tmp_path / "nowhere", *ports))
    assert "99999 is not in the range" in one_line(convoy_here("serve", repository, "--grpc-port", "99999"))
    assert "nan is not a finite number" in one_line(convoy_here("serve", repository, *ports, "--drain-seconds", "nan"))
    assert "Missing argument 'REPOSITORY'" in one_line(convoy_here("serve"))
    assert "No such option" in one_line(convoy_here("serve", repository, "--nope"))
    assert "CONVOY_GRPC_PORT" in one_line(convoy_here("serve", repository, CONVOY_GRPC_PORT="tcp://10.0.0.1:8001"))
    ready = tmp_path / "ready"
    ready.write_text("of the one that runs")
    ours = ["--grpc-port", str(running.grpc_port), "--http-port", "0", "--ready-file", str(ready)]
    assert "the port is in use" in one_line(convoy("serve", repository, *ours))
    assert ready.read_text() == "of the one that runs"
    assert running.process.poll() is None
    running.process.send_signal(signal.SIGHUP)
    assert running.process.wait(30) == 0, "a terminal that is closed ends it as Ctrl-C does"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"repository": Path(__file__)}, "is not a folder"),
        ({"host": ("no such host",)}, "--host 'no such host' cannot be resolved"),
        ({"provider": "cuda"}, "provider 'cuda' is not in the installed ONNX Runtime"),
        ({"ready_file": Path(__file__).parent / "no" / "ready"}, "not a file in a folder"),
        ({"ready_file": Path("/proc/x")}, "--ready-file '/proc/x'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], says: str, repository: Path) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as refused:
        Server(ServerConfig(**{"repository": repository, "grpc_port": 0, "http_port": 0, **settings}))
    assert "\n" not in str(refused.value)


def test_the_ready_file_appears_whole_and_a_stale_one_is_gone_first(repository: Path, tmp_path: Path) -> None:
    """Polls as fast as it can: the file must never be there without its content, nor with that of a server before."""
    ready = tmp_path / "ready.json"
    ready.write_text("stale")
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", str(repository), "--grpc-port", "0", "--http-port", "0",
         "--ready-file", str(ready), "--log-level", "warning"],
    )  # fmt: skip
    try:
        seen: set[str] = set()
        deadline = time.monotonic() + 30
        while not any("pid" in text for text in seen) and time.monotonic() < deadline:
            try:
                seen.add(ready.read_text())
            except FileNotFoundError:
                seen.add("absent")
        contents = seen - {"stale", "absent"}
        assert [json.loads(text)["pid"] for text in contents] == [process.pid]
        assert "absent" in seen
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert list(tmp_path.glob("*ready*")) == []


def test_every_flag_of_serve_is_an_environment_variable_and_flags_win(
    repository: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    help_text = convoy_here("serve", "--help").stdout
    flags = set(re.findall(r"^  (?:-h, )?--([a-z-]+)", help_text, re.M)) - {"help"}
    assert len(flags) >= 8
    variables = set(re.findall(r"env\s+var:\s+(CONVOY_[A-Z_]+)", help_text))
    assert variables == {f"CONVOY_{flag.upper().replace('-', '_')}" for flag in flags}
    monkeypatch.setenv("CONVOY_GRPC_PORT", "1")
    monkeypatch.setenv("CONVOY_LOG_LEVEL", "debug")
    server = spawn(repository)
    assert server.grpc_port != 1
    assert server.terminate() == 0


def test_classify_prints_for_people_and_for_programs(repository: Path, spawn: Spawn, digits: Dataset, tmp_path: Path) -> None:
    server = f"127.0.0.1:{spawn(repository).grpc_port}"
    files = []
    for index in range(3):
        files.append(tmp_path / f"{index}.png")
        files[-1].write_bytes(digits.test.encoded(index))
    shown = convoy("classify", *files, "--model", "digits", "--server", server, "--top-k", "2")
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[0] for line in shown.stdout.splitlines() if not line.startswith(" ")] == [str(file) for file in files]
    assert len(shown.stdout.splitlines()) == 9
    as_json = convoy("classify", *files, "--model", "digits", "--json", CONVOY_SERVER=server)
    lines = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert [line["image"] for line in lines] == [str(file) for file in files]
    assert all(line["version"] == "1" and len(line["predictions"]) == 5 for line in lines)

    (repository / "digits" / "serving.toml").write_text("max_request_items = 2\n")
    small = f"127.0.0.1:{spawn(repository).grpc_port}"
    assert convoy("classify", *files, "--model", "digits", "--json", "--server", small).stdout == as_json.stdout

    ask = f'exec "$0" -m service.cli classify {files[0]} --model digits --server {server} >&-'
    to_nobody = subprocess.run(["sh", "-c", ask, sys.executable], capture_output=True, text=True, timeout=60, check=False)
    assert (to_nobody.returncode, to_nobody.stderr) == (0, "")

    text, empty = tmp_path / "text.png", tmp_path / "empty.png"
    text.write_text("not a picture")
    empty.write_bytes(b"")
    at = ["--model", "digits", "--server", server]
    assert f"{text}: not an image in a format accepted here" in one_line(convoy_here("classify", text, *at))
    mixed = convoy_here("classify", files[0], text, tmp_path / "none.png", files[1], *at)
    assert mixed.returncode == 2
    assert [line.split()[0] for line in mixed.stdout.splitlines() if not line.startswith(" ")] == [str(file) for file in files[:2]]
    of_text, of_none, all_in_all = mixed.stderr.splitlines()
    assert of_text.startswith(f"convoy: {text}: not an image")
    assert "No such file" in of_none
    assert all_in_all == "convoy: 2 of 4 images could not be classified"
    assert f"{empty}: the image is empty (0 bytes)" in one_line(convoy_here("classify", empty, *at))
    assert "No such file" in one_line(convoy_here("classify", tmp_path / "none.png", *at))
    assert "no model named 'cats'; served are: digits" in one_line(
        convoy_here("classify", files[0], "--model", "cats", "--server", server)
    )
    large = tmp_path / "large.png"
    large.write_bytes(bytes(110_000_000))
    assert f"{large}: too large: the request has 1100000" in one_line(convoy_here("classify", large, *at))
    assert "no server answers at 127.0.0.1:1" in one_line(
        convoy_here("classify", files[0], "--model", "digits", "--server", "127.0.0.1:1")
    )
    with large.open("wb") as file:
        file.truncate(2**31)  # takes no room on the disk
    assert f"{large}: 2147483648 bytes; a request holds at most 2147483647" in one_line(convoy_here("classify", large, *at))
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            with other.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert f"cannot connect to a gRPC server at {address}" in one_line(
            convoy_here("classify", files[0], "--model", "digits", "--server", address)
        )
        answering.join()


def test_train_export_inspect(tmp_path: Path, known_operators: None) -> None:
    """As processes of their own the demo runs them."""
    run, models = tmp_path / "run", tmp_path / "models"
    trained = convoy_here("train", "--data", "digits", "--epochs", "2", "--output", run)
    assert trained.returncode == 0, trained.stderr
    assert "test accuracy" in trained.stdout
    assert {path.name for path in run.iterdir()} == {"checkpoint.pt", "metrics.jsonl", "curves.png"}
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "nothing is overwritten" in one_line(convoy_here("train", "--data", "digits", "--output", run))

    refused = one_line(convoy_here("export", run, "--repository", models, "--minimum-accuracy", "99.99"))
    assert re.search(r"accuracy gate: [0-9.]+% on 360 images is below the minimum of 99.99%", refused)
    assert not models.exists(), "a failed gate writes nothing to the repository"

    assert "a name starts with" in one_line(convoy_here("export", run, "--repository", models, "--name", "../up"))
    (models / "digits" / "1").mkdir(parents=True)
    exported = convoy_here("export", run, "--repository", models)
    assert exported.returncode == 0, exported.stderr
    assert "same top label on 100%" in exported.stdout
    assert sorted(path.name for path in (models / "digits").iterdir()) == ["1", "2"]
    assert (models / "digits" / "2" / "model.onnx").is_file()

    inspected = convoy_here("inspect", models / "digits" / "2" / "model.onnx")
    assert inspected.returncode == 0, inspected.stderr
    for expected in ("(N, 32, 26, 26)", "93,322", "2,230,272", "sha256", "article-cnn on digits, ", "4 samples"):
        assert expected in inspected.stdout
    text = tmp_path / "text.onnx"
    text.write_text("nonsense")
    assert "not a valid ONNX model" in one_line(convoy_here("inspect", text))
    assert "No such file" in one_line(convoy_here("inspect", tmp_path / "none.onnx"))
    assert "has no checkpoint.pt" in one_line(convoy_here("export", tmp_path, "--repository", models))
    (run / "checkpoint.pt").write_bytes(b"broken")
    assert "not a checkpoint" in one_line(convoy_here("export", run, "--repository", models))


def test_train_refuses_what_cannot_be(tmp_path: Path) -> None:
    assert "--data 'cats' is not 'digits', 'mnist', 'cifar10', nor a folder of images" in one_line(
        convoy_here("train", "--data", "cats", "--output", tmp_path / "a")
    )
    assert "'0x5' is neither N nor HxW" in one_line(
        convoy_here("train", "--data", "digits", "--image-size", "0x5", "--output", tmp_path / "a")
    )
    assert "the networks are article-cnn" in one_line(
        convoy_here("train", "--data", "digits", "--network", "lenet", "--output", tmp_path / "b")
    )
    assert not (tmp_path / "b").exists()
    offline = ("--data", "mnist", "--data-dir", tmp_path)  # which come after the folder: they may take minutes
    assert "has no checkpoint.pt" in one_line(convoy_here("train", *offline, "--output", tmp_path / "b", "--resume"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").touch()
    assert "nothing is overwritten" in one_line(convoy_here("train", *offline, "--output", tmp_path / "full"))
    assert "nan is not a finite number" in one_line(
        convoy_here("train", "--data", "digits", "--learning-rate", "nan", "--output", tmp_path / "c")
    )


def test_names_that_no_file_can_have_are_no_tracebacks(tmp_path: Path) -> None:
    name = "n" * 300
    for command in (
        ["train", "--data", name, "--output", tmp_path / "run"],
        ["train", "--data", "digits", "--output", tmp_path / name],
        ["export", name, "--repository", tmp_path / "models"],
        ["evaluate", name, "--data", "digits"],
        ["inspect", name],
        ["serve", name],
    ):
        said = one_line((convoy if command[0] == "serve" else convoy_here)(*command))
        # For Python 3.14 what no file can be called just does not exist.
        assert "File name too long" in said or (sys.version_info >= (3, 14) and name in said), command


def test_help_teaches(tmp_path: Path) -> None:
    shown = convoy("--help")
    assert shown.returncode == 0
    for command in ("train", "export", "serve", "classify", "inspect"):
        assert f"  {command} " in shown.stdout
        assert convoy_here(command, "--help").returncode == 0
    assert re.fullmatch(r"convoy, version \d+\.\d+\.\d+ \((compiled|pure Python)\)\n", convoy_here("--version").stdout)
    assert "No such command 'nope'" in one_line(convoy_here("nope"))


def test_where_grpcios_private_layer_differs_the_public_one_takes_over(tmp_path: Path, repository: Path, spawn: Spawn) -> None:
    """Takes one class away from grpcio's private layer, as another version might."""
    (tmp_path / "sitecustomize.py").write_text("import grpc._cython.cygrpc as cygrpc\ndel cygrpc.ReceiveCloseOnServerOperation\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    refused = one_line(convoy("serve", repository, "--grpc-port", "0", "--http-port", "0", "--transport", "fast", PYTHONPATH=path))
    assert "--transport fast cannot be used: grpcio" in refused
    assert "ReceiveCloseOnServerOperation is not as tested; --transport public can" in refused
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        server = spawn(repository, "--transport", "auto")
    assert "the fast transport cannot be used, taking the public one" in server.log.read_text()
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics", timeout=10) as response:
        assert 'convoy_transport_info{transport="public"} 1.0' in response.read().decode()
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        assert len(client.classify([bytes_of_dark_png()], "digits").results) == 1
    assert server.terminate() == 0


def test_tls_from_the_command_line(repository: Path, spawn: Spawn, digits: Dataset, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("127.0.0.1", "client"):
        issued = authority.issue_cert(name)
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
    image = tmp_path / "digit.png"
    image.write_bytes(digits.test.encoded(0))
    pem, key, ca = (str(tmp_path / name) for name in ("127.0.0.1.pem", "127.0.0.1.key", "ca.pem"))
    server = spawn(repository, "--tls-cert", pem, "--tls-key", key, "--tls-client-ca", ca)
    ask: list[str | Path] = ["classify", image, "--model", "digits", "--server", f"127.0.0.1:{server.grpc_port}", "--timeout", "5"]
    own: list[str | Path] = ["--tls-ca", ca, "--tls-cert", tmp_path / "client.pem", "--tls-key", tmp_path / "client.key"]
    assert convoy_here(*ask, *own).returncode == 0
    for missing in ([], own[:2]):
        assert one_line(convoy_here(*ask, *missing))
    trusting = ssl.create_default_context(cafile=ca)
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:  # nobody gets in by HTTP either
        urllib.request.urlopen(f"https://127.0.0.1:{server.http_port}/v2/models/digits", timeout=30, context=trusting)
    refused.value.close()
    renewed = trustme.CA()
    for path, blob in zip((key, pem), (renewed.issue_cert("127.0.0.1").private_key_pem, renewed.cert_pem), strict=True):
        blob.write_to_path(path)
    assert convoy_here(*ask, *own).returncode == 0, "files that do not belong together change nothing"
    issued = renewed.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(pem)
    assert one_line(convoy_here(*ask, *own)), "the CA is not the new certificate's"
    renewed.cert_pem.write_to_path(tmp_path / "renewed.pem")
    assert convoy_here(*ask, "--tls-ca", tmp_path / "renewed.pem", *own[2:]).returncode == 0
    log = server.log.read_text()
    assert "the previous ones are kept" in log
    assert "has been renewed" in log
    ports = ["--grpc-port", "0", "--http-port", "0"]
    encrypted = tmp_path / "encrypted.key"
    loaded = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"password")
    encrypted.write_bytes(loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    assert "TLS: " in one_line(convoy("serve", repository, *ports, "--tls-cert", pem, "--tls-key", encrypted, timeout=20))
    assert "TLS needs both" in one_line(convoy("serve", repository, *ports, "--tls-cert", pem))
    assert "must be PEM files that belong together" in one_line(
        convoy("serve", repository, *ports, "--tls-cert", ca, "--tls-key", key)
    )
    assert server.terminate() == 0


def test_without_torch_train_names_the_extra_and_inspect_works(tmp_path: Path, model_file: Path) -> None:
    """Runs commands where torch cannot be imported, as where the extra is not installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError('No module named torch', name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert "extra 'export'" in one_line(convoy("train", "--data", "digits", "--output", tmp_path / "run", PYTHONPATH=path))
    inspected = convoy("inspect", model_file, PYTHONPATH=path)
    assert inspected.returncode == 0, inspected.stderr
    assert "93,322" in inspected.stdout


@pytest.mark.system
@pytest.mark.timeout(300)
def test_the_demo() -> None:
    result = subprocess.run(
        [sys.executable, "tests/demo.py"], capture_output=True, text=True, timeout=280, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    accuracy = re.search(r"held-out accuracy over gRPC: ([0-9.]+) %", result.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 98.0
    assert len(re.findall(r"^(?:decode|queue|inference|encode) +[0-9.]+ ms +[0-9.]+ ms +[0-9.]+ ms", result.stdout, re.M)) == 4
    assert "drained and stopped, exit code 0" in result.stdout
