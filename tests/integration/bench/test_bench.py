"""`convoy bench` against a real server, as a user runs it."""

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from onnx import TensorProto
from PIL import Image

from export.data.datasets import Dataset
from service.bench.images import synthetic_requests
from service.bench.load import NOT_SENT, Load
from service.bench.processes import run
from service.bench.report import summary
from service.bench.sender import _channel, _unary
from service.bench.server_metrics import scrape
from service.errors import UserError
from service.server import Server
from tests.conftest import Serve, ServerProcess, Spawn, convoy, put
from tests.integration.test_foreign import write
from tests.integration.test_transport import Proxy
from tests.program import convoy_here, one_line


@pytest.fixture
def transport_name() -> str:
    """The client knows nothing of the server's transport: once is enough."""
    return "auto"


def bench(server: Server, *arguments: str | Path) -> dict[str, Any]:
    result = convoy(
        "bench", "--model", "digits", "--server", f"127.0.0.1:{server.grpc_port}", "--seconds", "1", "--warmup", "0.2",
        "--metrics", f"http://127.0.0.1:{server.http_port}/metrics", "--json", *arguments,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_closed_loop_is_counted_by_client_and_server_alike(server: Server) -> None:
    found = bench(server, "--concurrency", "8", "--items", "3")
    assert found["codes"] == {"OK": found["answered"]}
    assert found["items_per_second"] == pytest.approx(3 * found["requests_per_second"])
    latency = found["latency_ms"]
    assert 0 < latency["min"] <= latency["p50"] <= latency["p99"] <= latency["max"]
    # The server has seen the warm-up and each connection's first call too.
    assert found["answered"] < found["server"]["requests"]
    assert {"queue", "inference", "encode"} <= set(found["server"]["phases_ms"])
    assert found["server"]["mean_batch_items"] >= 1


def test_random_arrivals_come_at_the_rate_asked_for(server: Server) -> None:
    found = bench(server, "--rate", "40", "--seconds", "3", "--processes", "2")
    # 120 arrivals are expected; a Poisson process is within 5 standard deviations of that but once in a million runs.
    assert 120 - 55 < found["answered"] < 120 + 55
    assert found["load"]["kind"] == "poisson"
    assert found["client_late_ms"]["min"] >= 0
    assert found["load"]["seconds"] == 3, "a load lasts as long as it was asked to, whenever its last request comes"


def test_a_stream_carries_the_same(server: Server) -> None:
    found = bench(server, "--stream", "--concurrency", "12", "--connections", "2")
    assert (found["load"]["kind"], set(found["codes"])) == ("stream", {"OK"})
    assert found["answered"] < found["server"]["requests"], "each message of a stream is a request, not each stream"
    assert found["answered"] > 12


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_pictures_can_be_encoded_and_of_any_size(server: Server, encoding: str) -> None:
    found = bench(server, "--encoding", encoding, "--image-size", "40x60", "--concurrency", "2")
    assert set(found["codes"]) == {"OK"}
    assert "decode" in found["server"]["phases_ms"]


def test_own_pictures_and_a_plot(server: Server, digits: Dataset, tmp_path: Path) -> None:
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(digits.test.encoded(index))
    plot = tmp_path / "latency.dat"  # a PNG, whatever it is called
    bench(server, "--image", tmp_path / "0.png", "--image", tmp_path / "1.png", "--items", "5", "--plot", plot)
    with Image.open(plot) as picture:
        assert picture.size > (600, 300)


def test_models_that_take_no_pictures_are_told_apart(tmp_path: Path, serve: Serve) -> None:
    write(tmp_path / "models" / "floats" / "1" / "model.onnx")
    write(tmp_path / "models" / "pictures" / "1" / "model.onnx", TensorProto.UINT8, ("N", 2, 2, 3))
    server = serve(tmp_path / "models")
    image = tmp_path / "cat.png"
    Image.new("RGB", (2, 2)).save(image)
    found = bench(server, "--model", "pictures")
    assert set(found["codes"]) == {"OK"}, "bench sends raw pixels, and it takes them"

    def says(*arguments: str | Path) -> str:
        result = convoy_here(*arguments, "--server", f"127.0.0.1:{server.grpc_port}")
        assert result.returncode == 2
        return result.stderr

    no, picture = "was not exported by Convoy and takes no", "'data' of uint8 2 x 2 x 3"
    command, does = "`convoy import FILE --repository DIR --name NAME", "makes a model of it that does"
    floats = f"{command} --preset torchvision|timm|keras|caffe` (or --resize stretch:2x2 --scale 255 ...) {does}"
    assert says("bench", "--model", "floats") == (
        f"convoy: model 'floats' {no} pictures but tensors, 'data' of float32 3 x 2 x 2. bench does not send them: use a load "
        "generator for the Open Inference Protocol, such as NVIDIA's perf_analyzer; "
        f"{floats}\n"
    )
    for option, value in (("--image", image), ("--encoding", "png")):
        without = option if option == "--image" else f"{option} {value}"
        assert says("bench", "--model", "pictures", option, value) == (
            f"convoy: model 'pictures' {no} picture files: without {without} bench sends it raw pixels, {picture}; "
            f"{command} --resize stretch:2x2` {does}\n"
        )
    for files in ([image], [image, image]):
        assert says("classify", *files, "--model", "floats") == (
            f"convoy: INVALID_ARGUMENT: model 'floats' {no} pictures: nothing says how one becomes its input 'data', "
            "float32 3 x 2 x 2. Send it tensors over the Open Inference Protocol; "
            f"{floats}\n"
        )


def test_what_is_refused_is_counted_by_its_code(repository: Path, slow_file: Path, serve: Serve) -> None:
    """A queue of two items before a slow model, and 16 requests at a time."""
    put(slow_file, repository, "slow", 1)
    (repository / "slow" / "serving.toml").write_text("max_queue_items = 2\nmax_batch_size = 1\n")
    server = serve(repository)
    result = convoy(
        "bench", "--model", "slow", "--server", f"127.0.0.1:{server.grpc_port}", "--seconds", "3", "--warmup", "0", "--json",
        "--metrics", "none",
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert found["codes"]["RESOURCE_EXHAUSTED"] > found["codes"]["OK"] > 0
    assert found["answered"] == found["codes"]["OK"]
    assert found["refused_latency_ms"]["p50"] < found["latency_ms"]["p50"]


def test_what_is_answered_after_the_end_has_a_latency_but_no_part_in_the_rate(
    repository: Path, slow_file: Path, serve: Serve
) -> None:
    put(slow_file, repository, "slow", 1)
    (repository / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    requests = synthetic_requests("slow", "", 1, (2, 2, 1), "pixels", 0)
    load = Load(f"127.0.0.1:{serve(repository).grpc_port}", requests, seconds=1.5, warmup_seconds=0, rate=20, timeout_seconds=120)
    outcome = run(load)
    found = summary(load, 1, outcome, None)
    assert found["codes"] == {"OK": found["answered"]}, "each of them has a latency"
    assert found["answered_after_end"] > 0
    assert found["requests_per_second"] == (found["answered"] - found["answered_after_end"]) / 1.5


def test_what_was_not_sent_was_not_refused(server: Server) -> None:
    outcome = run(Load(f"127.0.0.1:{server.grpc_port}", pictures(), seconds=0.02, warmup_seconds=0, rate=1e6))
    assert outcome.codes[NOT_SENT] > 0
    assert outcome.refused.get_total_count() == outcome.codes.total() - outcome.codes["OK"] - outcome.codes[NOT_SENT]


def pictures() -> tuple[bytes, ...]:
    return synthetic_requests("digits", "", 1, (28, 28, 1), "png", 0)


def answered(server: Server | ServerProcess) -> float:
    return scrape(f"http://127.0.0.1:{server.http_port}/metrics", "digits").requests


def test_a_stream_to_a_server_that_hangs_ends_by_the_deadline(repository: Path, spawn: Spawn) -> None:
    server = spawn(repository)

    hung: list[float] = []

    def hang(seconds: float) -> None:
        if hung:
            raise KeyboardInterrupt  # or every second would try anew
        if answered(server) > 100:
            server.process.send_signal(signal.SIGSTOP)
            hung.append(seconds)

    load = Load(
        f"127.0.0.1:{server.grpc_port}", pictures(), seconds=60, warmup_seconds=0, concurrency=4, stream=True, timeout_seconds=1
    )
    codes = run(load, on_progress=hang).codes
    assert set(codes) == {"OK", "DEADLINE_EXCEEDED"}


def test_a_stream_that_breaks_is_followed_by_another(repository: Path, serve: Serve) -> None:
    servers = [serve(repository)]
    port = servers[0].grpc_port

    def restart(seconds: float) -> None:
        if answered(servers[-1]) > 100:
            if len(servers) == 2:
                raise KeyboardInterrupt
            servers[0].stop()
            servers.append(serve(repository, grpc_port=port))

    outcome = run(
        Load(f"127.0.0.1:{port}", pictures(), seconds=60, warmup_seconds=0, concurrency=4, stream=True), on_progress=restart
    )
    assert answered(servers[1]) > 100
    assert 0 < outcome.codes["OK"] < outcome.codes.total(), "some were under way when the server ended"


def test_ctrl_c_shows_what_was_measured_until_then(server: Server) -> None:
    command = [sys.executable, "-m", "service.cli", "bench", "--model", "digits", "--server", f"127.0.0.1:{server.grpc_port}",
               "--seconds", "600", "--warmup", "0", "--metrics", "none", "--json", "--processes", "2"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        calls = server_calls(server)
        deadline = time.monotonic() + 60
        while server_calls(server) < calls + 50:
            assert time.monotonic() < deadline and process.poll() is None  # noqa: PT018
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()  # ten minutes of load would go on beside the tests that follow
        process.communicate()
    assert process.returncode == 0, err
    found = json.loads(out)
    assert found["answered"] > 0
    assert found["load"]["seconds"] < 590


def server_calls(server: Server) -> float:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("grpc_server_handled_total") and "Classify" in line)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "5", "--concurrency", "2"], "--rate cannot be combined"),
        (["--rate", "5", "--stream"], "--rate cannot be combined"),
        (["--rate", "nan"], "nan"),
        (["--image-size", "28x28"], "--image-size needs --encoding"),
        (["--encoding", "png", "--image-size", "28x"], "neither N nor HxW"),
        (["--concurrency", "2", "--processes", "3"], "higher --concurrency"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--plot", "nowhere/latency.png"], "nowhere"),
        (["--metrics", "http://127.0.0.1:9/metrics"], "cannot read metrics"),
        (["--metrics", "file:///etc/passwd"], "expected a URL"),
        (["--items", "100000"], "takes at most 512 images"),
        (["--version", "7"], "7"),
        (["--encoding", "jpeg", "--image-size", "1x70000"], "1 to 65535 pixels"),
        (["--encoding", "png", "--image-size", "60000"], "at most 25000000 pixels"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(server: Server, arguments: list[str], said: str) -> None:
    at = f"127.0.0.1:{server.grpc_port}"
    assert said in one_line(convoy_here("bench", "--model", "digits", "--server", at, "--seconds", "1", *arguments))


def test_each_channel_is_a_connection_of_its_own_that_takes_answers_of_any_size() -> None:
    async def answer() -> list[int]:
        server = grpc.aio.server()
        handler: Any = grpc.unary_unary_rpc_method_handler(_large_answer)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("convoy.v1.Classifier", {"Classify": handler})])
        proxy = Proxy(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        channels = [_channel(Load(f"127.0.0.1:{proxy.port}", (b"",), 1)) for _ in range(3)]
        sizes = [len(await _unary(channel)(b"", timeout=20)) for channel in channels]
        for channel in channels:
            await channel.close()
        await server.stop(0)
        proxy.close()
        return [proxy.connections, *sizes]

    assert asyncio.run(answer()) == [3, *[5 << 20] * 3]


async def _large_answer(_: bytes, __: Any) -> bytes:
    return bytes(5 << 20)


def test_without_a_server_it_says_so() -> None:
    result = convoy_here("bench", "--model", "digits", "--server", "127.0.0.1:9", "--timeout", "2")
    assert (result.returncode, "no server answers at 127.0.0.1:9" in result.stderr) == (2, True)


def test_a_proxy_that_is_dead_is_named_and_this_machine_needs_none(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    for command in (["bench"], ["classify", __file__]):
        result = convoy_here(*command, "--model", "digits", "--server", "models.example:8001")
        assert result.returncode == 2
        assert result.stderr.startswith(
            "convoy: no connection to models.example:8001 through the HTTP proxy 127.0.0.1:9 of $http_proxy: "
        )
        assert result.stderr.count("\n") == 1
    local = ["bench", "--model", "digits", "--server", f"127.0.0.1:{server.grpc_port}", "--seconds", "0.3", "--warmup", "0"]
    assert "server: inference" in convoy(*local, "--metrics", f"http://127.0.0.1:{server.http_port}/metrics").stdout
    result = convoy(*local, "--metrics", "http://models.example:8002/metrics")
    assert "models.example:8002/metrics through the HTTP proxy 127.0.0.1:9 of $http_proxy: " in result.stderr


@pytest.mark.parametrize("number", [0, 1])
def test_a_client_process_that_dies_is_an_error_at_once(server: Server, number: int) -> None:
    def kill(_: float) -> None:
        for process in multiprocessing.active_children():
            if process.name == f"client-{number}":
                process.kill()

    load = Load(f"127.0.0.1:{server.grpc_port}", pictures(), seconds=1000, warmup_seconds=0, processes=2, concurrency=2)
    with pytest.raises(UserError, match="a client process exited unexpectedly"):
        run(load, on_progress=kill)


def test_a_narrow_terminal_cuts_no_figures_off(server: Server) -> None:
    result = convoy(
        "bench", "--model", "digits", "--server", f"127.0.0.1:{server.grpc_port}", "--seconds", "0.5", "--warmup", "0",
        "--metrics", f"http://127.0.0.1:{server.http_port}/metrics", COLUMNS="40",
    )  # fmt: skip
    assert "server: inference" in result.stdout
    assert "p99.9" in result.stdout
    assert "…" not in result.stdout


def test_figures_of_a_server_that_was_restarted_meanwhile_are_none(server: Server) -> None:
    url = f"http://127.0.0.1:{server.http_port}/metrics"
    before = scrape(url, "digits")
    bench(server)
    after = scrape(url, "digits")
    came = after.since(before)
    assert came is not None
    assert came.requests > 0
    assert before.since(after) is None, "it has counted less"
    assert after.since(replace(before, started=before.started - 1)) is None, "it has counted more, but is another process"
