"""Shared memory that clients register: off unless asked for, and what hostile or unlucky clients do with it."""

import http.client
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from export.data.datasets import Dataset
from service.open_inference.shared_memory import Region
from service.pb.inference import open_inference_pb2 as oip
from service.server import Server
from tests.conftest import Serve, full_disk

PREFIX = f"convoy-test-{os.getpid()}-"
SERVICE = "/inference.GRPCInferenceService/"
IMAGE = [1, 28, 28, 1]
SCORES_BYTES = 40
HTTP_STATUS = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "UNIMPLEMENTED": 501, "RESOURCE_EXHAUSTED": 507}
_numbers = itertools.count()

Make = Callable[[bytes], Path]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes objects of shared memory, which are removed at the end."""
    made: list[Path] = []

    def make(content: bytes) -> Path:
        made.append(Path(f"/dev/shm/{PREFIX}{next(_numbers)}"))
        made[-1].write_bytes(content)
        return made[-1]

    yield make
    for path in made:
        path.unlink(missing_ok=True)


@pytest.fixture
def server(repository: Path, serve: Serve) -> Server:
    return serve(repository, shared_memory_prefix=(PREFIX,))


def post(server: Server, path: str, document: dict[str, Any]) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(document))
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def call(server: Server, method: str, request: Any) -> tuple[str, str]:
    """The name of the code, and the message of an error."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        asked: Any = channel.unary_unary(SERVICE + method)
        try:
            asked(request.SerializeToString(), timeout=60)
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""
    return "OK", ""


def register(server: Server, name: str, key: str, byte_size: int, offset: int = 0) -> tuple[str, str]:
    """Over gRPC and, which must end alike, over HTTP."""
    request = oip.SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=byte_size, offset=offset)
    code, message = call(server, "SystemSharedMemoryRegister", request)
    if code != "OK":
        document = {"key": key, "byte_size": byte_size, "offset": offset}
        status, body = post(server, f"/v2/systemsharedmemory/region/{name}/register", document)
        assert (status, json.loads(body)["error"]) == (HTTP_STATUS[code], message)
    return code, message


def infer(
    server: Server, region: str, size: int, *, model: str = "digits", name: str = "image", datatype: str = "UINT8",
    shape: list[int] = IMAGE, into: tuple[str, int, int] | None = None,
) -> tuple[str, str]:  # fmt: skip
    """Infers from a region, and with `into` to a region's offset and size, over gRPC and, which must end alike, over HTTP."""
    place = {"shared_memory_region": region, "shared_memory_byte_size": size}
    names = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
    target = {} if into is None else dict(zip(names, into, strict=True))
    request = oip.ModelInferRequest(
        model_name=model,
        inputs=[oip.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape, parameters=parameters(place))],
        outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="logits", parameters=parameters(target))],
    )
    code, message = call(server, "ModelInfer", request)
    document = {
        "inputs": [{"name": name, "datatype": datatype, "shape": shape, "parameters": place}],
        "outputs": [{"name": "logits", "parameters": target}],
    }
    status, body = post(server, f"/v2/models/{model}/infer", document)
    assert status == (200 if code == "OK" else HTTP_STATUS[code]), body
    if code != "OK":
        assert json.loads(body)["error"] == message
    return code, message


def parameters(values: dict[str, Any]) -> dict[str, oip.InferParameter]:
    return {
        name: oip.InferParameter(int64_param=value) if isinstance(value, int) else oip.InferParameter(string_param=value)
        for name, value in values.items()
    }


def test_it_is_off_unless_asked_for(repository: Path, serve: Serve, make: Make) -> None:
    for settings, offered in (({}, False), ({"shared_memory_prefix": (PREFIX,)}, True)):
        server = serve(repository, **settings)
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
        connection.request("GET", "/v2")
        assert ("system_shared_memory" in json.loads(connection.getresponse().read())["extensions"]) is offered
        connection.close()
        code, message = register(server, "r", make(bytes(100)).name, 100)
        assert (code, "--shared-memory-prefix" in message) == (("OK", False) if offered else ("UNIMPLEMENTED", True))
    both = serve(repository, shared_memory_prefix=(PREFIX,), control="off")
    assert register(both, "r", make(bytes(100)).name, 100)[0] == "UNIMPLEMENTED"


def test_only_objects_of_clients_can_be_registered(server: Server, make: Make, tmp_path: Path) -> None:
    of_another_program = Path(f"/dev/shm/other-{PREFIX}")
    of_another_program.write_bytes(b"secret" * 100)
    first = make(bytes(600))
    others = [Path(f"{first}-{kind}") for kind in ("hard", "soft", "fifo", "folder")]
    try:
        others[0].hardlink_to(of_another_program)
        others[1].symlink_to(of_another_program)
        os.mkfifo(others[2])
        others[3].mkdir()
        for path in (of_another_program, *others):
            assert register(server, "r", f"/{path.name}", 600)[0] == "INVALID_ARGUMENT", path.name
        for key in ("", "/", ".", f"/{PREFIX}/../{of_another_program.name}", f"../shm/{first.name}", f"{first.name}\0"):
            assert register(server, "r", key, 600)[0] == "INVALID_ARGUMENT", key
        assert register(server, "r", f"/{PREFIX}missing", 600)[0] == "INVALID_ARGUMENT"
        assert not Path(f"/dev/shm/{PREFIX}missing").exists(), "nothing is made"
        assert register(server, "r", f"/{first.name}", 600)[0] == "OK"
    finally:
        for path in (of_another_program, *others):
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)


def test_nothing_is_read_for_a_request_that_its_model_refuses(
    server: Server, make: Make, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 1 << 30
    path = make(digits.test.pixels[0].tobytes())
    os.truncate(path, size)  # a hole: no memory is used
    assert register(server, "r", path.name, size)[0] == "OK"
    reads: list[int] = []
    read = Region.read

    def spy(region: Region, offset: int, byte_size: int) -> bytes:
        reads.append(byte_size)
        return read(region, offset, byte_size)

    monkeypatch.setattr(Region, "read", spy)
    many = size // 784
    assert infer(server, "r", size, model="nothing", shape=[size])[0] == "NOT_FOUND"
    assert infer(server, "r", size, model="nothing", datatype="BYTES", shape=[1])[0] == "NOT_FOUND"
    refused: list[dict[str, Any]] = [
        {"size": size, "shape": [size]}, {"size": many * 784, "shape": [many, 28, 28, 1]}, {"size": size, "shape": IMAGE},
        {"size": size, "datatype": "BYTES", "shape": [1]}, {"size": size, "datatype": "FP32", "shape": [size // 4]},
        {"size": 784, "name": "picture"}, {"size": 784, "datatype": "INT8"}, {"size": 784, "datatype": "BF16"},
        {"size": 784, "shape": [784]}, {"size": 783}, {"size": 0, "shape": [0, 28, 28, 1]}, {"size": size, "shape": [-1]},
        {"size": 784, "shape": []}, {"size": 4, "datatype": "BYTES", "shape": [1 << 40]},
    ]  # fmt: skip
    for case in refused:
        assert infer(server, "r", **case)[0] == "INVALID_ARGUMENT", case
    assert reads == []
    assert infer(server, "r", 784) == ("OK", "")
    assert reads == [784, 784]


def test_an_object_that_shrinks_fails_the_request_alone(server: Server, make: Make, digits: Dataset) -> None:
    source, target = make(digits.test.pixels[0].tobytes()), make(bytes(4096))
    assert register(server, "in", source.name, 784)[0] == "OK"
    assert register(server, "out", target.name, 4096)[0] == "OK"
    for path, size in ((source, 784), (target, 4096)):
        for kept in (0, 100):
            os.truncate(path, kept)
            code, message = infer(server, "in", 784, into=("out", 3000, SCORES_BYTES))
            assert (code, "shorter than when it was registered" in message) == ("INVALID_ARGUMENT", True)
            assert path.stat().st_size == kept, "it is not made larger again"
        os.truncate(path, size)
    assert infer(server, "in", 784, into=("out", 3000, SCORES_BYTES))[0] == "OK"


def test_an_output_is_written_to_its_place_and_nowhere_else(server: Server, make: Make, digits: Dataset) -> None:
    source, target = make(digits.test.pixels[0].tobytes()), make(b"\xaa" * 400)
    assert register(server, "in", source.name, 784)[0] == "OK"
    assert register(server, "out", target.name, 200, offset=100)[0] == "OK"
    for offset, size in ((200, SCORES_BYTES), (161, SCORES_BYTES), (0, 201), (0, SCORES_BYTES - 1)):
        assert infer(server, "in", 784, into=("out", offset, size))[0] == "INVALID_ARGUMENT"
    assert target.read_bytes() == b"\xaa" * 400
    assert infer(server, "in", 784, into=("out", 50, 150))[0] == "OK"
    content = target.read_bytes()
    assert content[:150] + content[150 + SCORES_BYTES :] == b"\xaa" * (400 - SCORES_BYTES)
    assert np.frombuffer(content, "<f4", 10, 150).argmax() == digits.test.labels[0]
    # Another program takes the name: the region is still the object that was registered.
    target.unlink()
    target.write_bytes(b"\xbb" * 400)
    assert infer(server, "in", 784, into=("out", 0, SCORES_BYTES))[0] == "OK"
    assert target.read_bytes() == b"\xbb" * 400


def test_a_full_dev_shm_fails_the_request_alone(server: Server, make: Make, digits: Dataset) -> None:
    source, target = make(digits.test.pixels[0].tobytes()), make(bytes(4096))
    assert register(server, "in", source.name, 784)[0] == "OK"
    assert register(server, "out", target.name, 4096)[0] == "OK"
    with full_disk():
        code, message = infer(server, "in", 784, into=("out", 100, SCORES_BYTES))
        assert (code, "cannot write to shared memory region 'out'" in message) == ("RESOURCE_EXHAUSTED", True)
        assert infer(server, "in", 784)[0] == "OK"
    assert infer(server, "in", 784, into=("out", 100, SCORES_BYTES))[0] == "OK"


@pytest.mark.parametrize("prefix", ["", "/", "../", "a/b", "*", "sem.x", "/triton_python_backend_shm_region_"])
def test_a_prefix_that_cannot_be_is_one_line(repository: Path, serve: Serve, prefix: str) -> None:
    with pytest.raises(Exception, match=r"--shared-memory-prefix .* is not accepted") as raised:
        serve(repository, shared_memory_prefix=(prefix,))
    assert "\n" not in str(raised.value)
