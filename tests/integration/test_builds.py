"""The build at hand gives the answers of pure Python, byte for byte, and says which one it is."""

import contextlib
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from export.data.datasets import Dataset
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.rpc import wire
from tests.conftest import wait_until_ready

ROOT = Path(__file__).parents[2]
BUILD = "pure Python" if str(wire.__file__).endswith(".py") else "compiled"

CLASSIFY = "/convoy.v1.Classifier/Classify"
CLASSIFY_STREAM = "/convoy.v1.Classifier/ClassifyStream"
INFER = "/inference.GRPCInferenceService/ModelInfer"
INFER_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


@dataclass
class Program:
    """`convoy serve` from one folder of sources."""

    folder: Path
    grpc_port: int
    http_port: int
    log: Path

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=20) as response:
            text: str = response.read().decode()
            return text


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@contextlib.contextmanager
def serving(folder: Path, repository: Path, files: Path) -> Iterator[Program]:
    files.mkdir()
    ready, log = files / "ready.json", files / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", str(repository), "--grpc-port", "0", "--http-port", "0",
             "--ready-file", str(ready), "--lame-duck-seconds", "0"],
            stdout=output, stderr=output, cwd=folder, env=environment(folder),
        )  # fmt: skip
    try:
        ports = wait_until_ready(process, ready, log)
        yield Program(folder, ports["grpc_port"], ports["http_port"], log)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def pure_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources alone, beside which no compiled module lies."""
    folder = tmp_path_factory.mktemp("pure")
    shutil.copytree(ROOT / "service", folder / "service", ignore=shutil.ignore_patterns("*.so", "compiled.sha256", "__pycache__"))
    return folder


@pytest.fixture
def programs(repository: Path, tmp_path: Path, pure_folder: Path) -> Iterator[list[Program]]:
    """The build at hand and the pure one."""
    with (
        serving(ROOT, repository, tmp_path / "this") as this,
        serving(pure_folder, repository, tmp_path / "pure") as pure,
    ):
        yield [this, pure]


def classifications(pixels: bytes, picture: bytes) -> list[pb.ClassifyRequest]:
    raw, encoded = pb.Item(pixels=pixels), pb.Item(encoded=picture)
    return [
        pb.ClassifyRequest(model="digits", items=[raw]),
        pb.ClassifyRequest(model="digits", items=[raw]),  # of a form that is known now
        pb.ClassifyRequest(model="digits", items=[raw], id="ä" * 200, top_k=10, priority=1),
        pb.ClassifyRequest(model="digits", version="1", items=[raw] * 33, top_k=1),
        pb.ClassifyRequest(model="digits", items=[encoded]),
        pb.ClassifyRequest(model="digits", version="latest", items=[raw, encoded, encoded], timeout_seconds=30),
        pb.ClassifyRequest(model="digits", items=[raw], top_k=11),
        pb.ClassifyRequest(model="digits", items=[raw], priority=9),
        pb.ClassifyRequest(model="digits", items=[raw], timeout_seconds=-1),
        pb.ClassifyRequest(model="digits", items=[raw], embeddings=True),
        pb.ClassifyRequest(model="digits", items=[raw], id="x" * 257),
        pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=pixels[1:])]),
        pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=picture[:-30])]),
        pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=b"no picture")]),
        pb.ClassifyRequest(model="digits", items=[pb.Item()]),
        pb.ClassifyRequest(model="digits", items=[raw] * 2000),
        pb.ClassifyRequest(model="digits"),
        pb.ClassifyRequest(model="digits", version="7", items=[raw]),
        pb.ClassifyRequest(model="other", items=[raw]),
        pb.ClassifyRequest(),
    ]


def infer_request(datatype: str, shape: list[int], raw: bytes | None = None, **contents: list[Any]) -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype=datatype, shape=shape)
    if contents:
        tensor.contents.MergeFrom(oip.InferTensorContents(**contents))
    return oip.ModelInferRequest(model_name="digits", inputs=[tensor], raw_input_contents=[] if raw is None else [raw])


def inferences(pixels: bytes, picture: bytes) -> list[oip.ModelInferRequest]:
    one, values = [1, 28, 28, 1], list(pixels)
    raw = infer_request("UINT8", one, pixels)
    named = infer_request("UINT8", one, pixels)
    named.id = "7"
    named.outputs.add(name="logits")
    named.parameters["priority"].int64_param = 1
    classes = infer_request("UINT8", one, pixels)
    classes.outputs.add(name="probabilities").parameters["classification"].int64_param = 3
    final = infer_request("UINT8", one, pixels)
    final.parameters["triton_enable_empty_final_response"].bool_param = True
    unknown_output, unknown_parameter = infer_request("UINT8", one, pixels), infer_request("UINT8", one, pixels)
    unknown_output.outputs.add(name="other")
    unknown_parameter.parameters["other"].string_param = "x"
    other = infer_request("UINT8", one, pixels)
    other.inputs[0].name = "other"
    return [
        raw,
        raw,
        named,
        classes,
        final,
        infer_request("UINT8", [20, 28, 28, 1], pixels * 20),
        infer_request("UINT8", one, uint_contents=values),
        infer_request("UINT8", [3, 28, 28, 1], uint_contents=values * 3),
        infer_request("BYTES", [1], struct.pack("<I", len(picture)) + picture),
        infer_request("BYTES", [2], bytes_contents=[picture, picture]),
        infer_request("FP32", one, np.zeros(784, "<f4").tobytes()),
        infer_request("UINT8", one, uint_contents=[*values[1:], 256]),
        infer_request("UINT8", one, uint_contents=values[1:]),
        infer_request("UINT8", one, pixels[1:]),
        infer_request("UINT8", [1, 28, 28], pixels),
        infer_request("UINT8", [-1, 28, 28, 1], pixels),
        infer_request("BYTES", [1], picture),
        infer_request("NONE", one, pixels),
        unknown_output,
        unknown_parameter,
        other,
        oip.ModelInferRequest(model_name="digits"),
        oip.ModelInferRequest(model_name="other", inputs=raw.inputs, raw_input_contents=[pixels]),
    ]


def without_seconds(reply: bytes, response: pb.ClassifyResponse) -> bytes:
    """A reply, of which the numbers that are measured are zero."""
    phases = response.phases
    for seconds in (phases.decode_seconds, phases.queue_seconds, phases.inference_seconds):
        reply = reply.replace(struct.pack("<d", seconds), bytes(8))
    return reply


def replies(channel: grpc.Channel, path: str, messages: list[bytes]) -> list[tuple[Any, ...]]:
    """The reply to each message, or the error and its details. One at a time, so that all batches are alike."""
    found: list[tuple[Any, ...]] = []
    call: Any = channel.unary_unary(path)
    for message in messages:
        try:
            found.append((call(message, timeout=30),))
        except grpc.RpcError as error:
            failed: Any = error
            details = [(key, value) for key, value in failed.trailing_metadata()]
            found.append((failed.code().name, failed.details(), details))
    return found


def streamed(channel: grpc.Channel, path: str, messages: list[bytes]) -> list[bytes]:
    """The reply to each message of one stream, which is sent when the one before has been answered."""
    found: list[bytes] = []
    stream: Any = channel.stream_stream(path)
    answered = 0

    def paced() -> Iterator[bytes]:
        for at, message in enumerate(messages):
            while answered < at:
                time.sleep(0.001)
            yield message

    for reply in stream(paced(), timeout=60):
        found.append(reply)
        answered += 1
    return found


def answers(program: Program, pixels: bytes, picture: bytes) -> dict[str, list[Any]]:
    classify, infer = classifications(pixels, picture), inferences(pixels, picture)
    with grpc.insecure_channel(f"127.0.0.1:{program.grpc_port}") as channel:
        unary = replies(channel, CLASSIFY, [*(each.SerializeToString() for each in classify), b"nonsense"])
        stream = streamed(
            channel, CLASSIFY_STREAM, [pb.ClassifyStreamRequest(request=each).SerializeToString() for each in classify]
        )
        return {
            CLASSIFY: [
                (without_seconds(each[0], pb.ClassifyResponse.FromString(each[0])),) if len(each) == 1 else each for each in unary
            ],
            CLASSIFY_STREAM: [without_seconds(each, pb.ClassifyStreamResponse.FromString(each).response) for each in stream],
            INFER: replies(channel, INFER, [*(each.SerializeToString() for each in infer), b"nonsense"]),
            INFER_STREAM: streamed(channel, INFER_STREAM, [each.SerializeToString() for each in infer]),
        }


def test_this_build_answers_as_the_pure_one(programs: list[Program], digits: Dataset) -> None:
    pixels, picture = digits.test.pixels[0].tobytes(), digits.test.encoded(0)
    this, pure = (answers(program, pixels, picture) for program in programs)
    for path, expected in pure.items():
        assert len(this[path]) == len(expected)
        for at, (found, wanted) in enumerate(zip(this[path], expected, strict=True)):
            assert found == wanted, f"{path}, message {at}"
    answered = [sum(len(each) == 1 for each in pure[path]) for path in (CLASSIFY, INFER)]
    assert answered[0] >= 6, pure[CLASSIFY]
    assert answered[1] >= 10, pure[INFER]


def test_a_program_says_of_which_build_it_is(programs: list[Program]) -> None:
    for program, build in zip(programs, (BUILD, "pure Python"), strict=True):
        said = subprocess.run(
            [sys.executable, "-m", "service.cli", "--version"],
            capture_output=True, text=True, timeout=60, check=True, cwd=program.folder, env=environment(program.folder),
        ).stdout  # fmt: skip
        assert said.endswith(f" ({build})\n")
        assert re.search(rf"listening: gRPC on .* transport, {build}\)", program.log.read_text()), program.log.read_text()
        assert re.search(rf'^convoy_build_info\{{[^}}]*build="{build}"', program.metrics(), re.MULTILINE)
