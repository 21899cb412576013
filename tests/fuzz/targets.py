"""What is fuzzed: functions that take any bytes, and raise if the server answers them with anything but an answer or a refusal.

The surfaces are those of a real server in this process, over real connections, so that its transport is fuzzed too. The files that
it reads (models, contracts, policies, pictures) go straight to their readers. `SEEDS` are valid inputs to begin with.
"""

import atexit
import gzip
import http.client
import io
import json
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
from PIL import Image

from service.errors import InvalidRequest, LoadError, UserError
from service.http.bodies import JSON_LENGTH
from service.model.contract import Contract
from service.model.input_spec import InputSpec
from service.model.onnx_messages import parse_model
from service.model.preprocessing import decode
from service.model.repository_layout import read_labels
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.policy import read_policy
from service.triton.settings import read_settings
from tests import refusals
from tests.unit.triton import configs

Target = Callable[[bytes], None]

MAX_PIXELS = 1_000_000
CALL_SECONDS = 60.0
WRONG = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}
"""How no call may end whatever its message is. A message may ask for a deadline of its own."""


class Surfaces:
    """The targets that are surfaces of a server."""

    def __init__(self, grpc_port: int, http_port: int) -> None:
        self._stack = ExitStack()
        self._http_port = http_port
        self._channel = self._stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{grpc_port}"))
        self._http = http.client.HTTPConnection("127.0.0.1", http_port, timeout=CALL_SECONDS)
        self.targets: Mapping[str, Target] = {
            "classify": lambda data: self._call(refusals.CLASSIFY, data),
            "classify-stream": lambda data: self._stream(refusals.CLASSIFY_STREAM, data),
            "infer": lambda data: self._call(refusals.INFER, data),
            "infer-stream": lambda data: self._stream(refusals.INFER_STREAM, data),
            "rest-json": lambda data: self._post(data, {}),
            "rest-binary": lambda data: self._post(data, {JSON_LENGTH: str(max(0, data.find(b"\0")))}),
            "rest-gzip": lambda data: self._post(data, {"Content-Encoding": "gzip"}),
            "http": self._send,
        }

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()
        self._stack.close()

    def _call(self, path: str, data: bytes) -> None:
        method: Any = self._channel.unary_unary(path)
        call = method.future(data, timeout=CALL_SECONDS)
        start = time.monotonic()
        call.exception()
        _check(call, start)

    def _stream(self, path: str, data: bytes) -> None:
        """Messages as long as their first byte says."""
        messages, at = [], 0
        while at < len(data):
            end = at + 1 + data[at]
            messages.append(data[at + 1 : end])
            at = end
        method: Any = self._channel.stream_stream(path)
        call = method(iter(messages), timeout=CALL_SECONDS)
        start = time.monotonic()
        with suppress(grpc.RpcError):
            for _ in call:
                pass
        _check(call, start)

    def _post(self, data: bytes, headers: dict[str, str]) -> None:
        self._http.request("POST", "/v2/models/digits/infer", data, headers)
        response = self._http.getresponse()
        body = response.read()
        if response.status == 500:
            raise AssertionError(f"{response.status}: {body[:300]!r}")
        json.loads(body)

    def _send(self, data: bytes) -> None:
        """Any bytes on a connection; whatever comes back is HTTP, and no failure of the server's."""
        with socket.create_connection(("127.0.0.1", self._http_port), timeout=CALL_SECONDS) as connection:
            answer = b""
            with suppress(ConnectionError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65536):
                    answer += part
        if answer and (not answer.startswith(b"HTTP/1.") or answer[9:12] == b"500"):
            raise AssertionError(f"{answer[:300]!r}")


def _check(call: Any, start: float) -> None:
    if call.code() in WRONG or time.monotonic() - start > CALL_SECONDS:
        raise AssertionError(f"{call.code().name}: {call.details()}")


def _contract(data: bytes) -> None:
    with suppress(LoadError):
        Contract.from_json(data)


def _onnx(data: bytes) -> None:
    with suppress(LoadError):
        Contract.of_model(parse_model(data))


INPUTS = (
    InputSpec(height=8, width=8, channels=3),
    InputSpec(height=8, width=8, channels=3, resize="short:9", filter="bicubic", crop="center", alpha="drop", exif="ignore"),
    InputSpec(height=8, width=9, channels=1, resize="pad", filter="tf-bilinear", dtype="float32", alpha="drop"),
    InputSpec(height=8, width=9, channels=1, resize="cover:10x11", filter="cv2-linear", crop="center-floor"),
)


def _picture(data: bytes) -> None:
    spec = INPUTS[len(data) % len(INPUTS)]
    with suppress(InvalidRequest):
        image = decode(data, spec, MAX_PIXELS)
        if image.shape != spec.shape or image.dtype != spec.dtype:
            raise AssertionError(f"{image.dtype}{image.shape}")


def read_triton(config: Path) -> object:
    return read_settings(config.parents[1], config.parent.name)


def _file(read: Callable[[Path], object], name: str = "file") -> Target:
    """A reader of a file in a model's folder."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)

    def target(data: bytes) -> None:
        path = Path(folder.name) / name
        path.write_bytes(data)
        with suppress(UserError, LoadError):
            read(path)

    return target


READERS: Mapping[str, Target] = {
    "contract": _contract,
    "onnx": _onnx,
    "picture": _picture,
    "policy": _file(read_policy),
    "triton": _file(read_triton, "config.pbtxt"),
    "labels": _file(read_labels),
}


def _pictures() -> list[bytes]:
    found = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"):
        file = io.BytesIO()
        Image.new("RGB", (9, 7), (200, 100, 50)).save(file, kind)
        found.append(file.getvalue())
    return found


def seeds(model: bytes) -> Mapping[str, Sequence[bytes]]:
    """Inputs of each target to begin with. `model` is an exported model of digits."""
    classify = [message for message, _ in refusals.CLASSIFY_MESSAGES.values() if len(message) < 4096]
    infer = [message for message, _ in refusals.INFER_MESSAGES.values() if len(message) < 4096]
    in_streams = [pb.ClassifyStreamRequest(request=pb.ClassifyRequest(model="digits")).SerializeToString()]
    rest = [body for _, body, _, _ in refusals.REST_REQUESTS.values() if len(body) < 4096]
    contract = Contract.of_model(parse_model(model))
    assert contract is not None
    heads = [
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"GET /v2/models/digits HTTP/1.1\r\nHost: x\r\nOrigin: http://x\r\n\r\nGET / HTTP/1.0\r\n\r\n",
    ]
    return {
        "classify": classify,
        "classify-stream": [b"".join(bytes([len(message)]) + message for message in in_streams * 3)],
        "infer": infer,
        "infer-stream": [bytes([min(255, len(message))]) + message[:255] for message in infer],
        "rest-json": rest,
        "rest-binary": rest,
        "rest-gzip": [gzip.compress(body) for body in rest],
        "http": heads,
        "contract": [contract.to_json().encode()],
        "onnx": [model[:2000], model[-3000:]],
        "picture": _pictures(),
        "policy": [b'max_batch_size = 8\nversions = "latest:2"\n[aliases]\nstable = 3\n'],
        "triton": [config.encode() for config in (configs.DENSENET, configs.RESNET, configs.MOBILENET, configs.ENSEMBLE)],
        "labels": [b"cat\ndog\n", "\u00c4\r\n".encode("utf-16")],
    }
