"""What memory a server keeps after large requests: gRPC and REST, by the size of a request.

For each way of asking and each size a fresh `convoy serve` answers requests one after the other. Its resident memory is taken
before, at its peak and after; `kept` is the difference. Pictures are BMP files of that size, which are decoded; tensors are
float32. REST's threads take turns, so that each of them has had a request once there are more requests than threads.

Usage: python -m tests.benchmarks.memory [--sizes 0.1,1,4,18,45,90] [--requests 72] [--model MODEL.onnx] [--only WAY]
"""

import argparse
import http.client
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image
from rich.console import Console
from rich.table import Table

from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from tests.benchmarks.transport import cpu_seconds, make_repository, serving

MIB = 2**20
ITEM_VALUES = 25_600
"""Float32 values of an item of the model of tensors: 100 KiB."""

Request = tuple[str, bytes, dict[str, str]]
"""A path, a body and headers; the path of a gRPC method has no headers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.1,1,4,18,45,90", help="MiB of a request")
    parser.add_argument(
        "--requests", type=int, default=72, help="requests of each way and size; JSON, which is slow, gets a quarter"
    )
    parser.add_argument("--model", type=Path, help="a digits model; trained afresh if not given")
    parser.add_argument("--only", choices=WAYS, help="one way of asking")
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    table = Table("way", "MiB a request", "n", "RSS before", "peak", "after", "kept, MiB", "CPU ms a request", box=None)
    with tempfile.TemporaryDirectory() as folder:
        repository = make_repository(Path(folder), arguments.model)
        make_tensor_model(repository)
        for way, make_request in WAYS.items():
            if arguments.only not in (None, way):
                continue
            for size in map(float, arguments.sizes.split(",")):
                count = max(1, arguments.requests // (4 if "JSON" in way else 1))
                with serving("Convoy fast", repository, Path(folder)) as (port, pid):
                    ports = json.loads((Path(folder) / "ready").read_text())
                    send = grpc_sender(port) if way.startswith("gRPC") else rest_sender(ports["http_port"])
                    request = make_request(round(size * MIB))
                    send(make_request(MIB // 10))
                    before, start = memory(pid)["VmRSS"], cpu_seconds(pid)
                    for _ in range(count):
                        send(request)
                    seconds = cpu_seconds(pid) - start
                    time.sleep(1)
                    after = memory(pid)
                    row = (way, f"{size:g}", str(count), f"{before:.0f}", f"{after['VmHWM']:.0f}", f"{after['VmRSS']:.0f}",
                           f"{after['VmRSS'] - before:.0f}", f"{1000 * seconds / count:.1f}")  # fmt: skip
                    table.add_row(*row)
                    console.print("  ".join(row), style="dim")
    console.print(table)


def memory(pid: int) -> dict[str, float]:
    """Resident memory of a process now (VmRSS) and at its peak (VmHWM), in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}


def make_tensor_model(repository: Path) -> None:
    """A model `tensors` that takes float32[N, ITEM_VALUES] and costs next to nothing to compute."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("MatMul", ["mean", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tensors",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", ITEM_VALUES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 2])],
        [onnx.numpy_helper.from_array(np.array([[1, -1]], np.float32), "weight")],
    )
    folder = repository / "tensors"
    (folder / "1").mkdir(parents=True)
    onnx.save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "1" / "model.onnx"
    )
    (folder / "serving.toml").write_text("max_request_items = 940\n")


def picture(size: int) -> bytes:
    """A BMP file of about `size` bytes."""
    side = int((size / 4) ** 0.5)
    file = io.BytesIO()
    Image.new("RGBA", (side, side), (90, 90, 90, 255)).save(file, "BMP")
    return file.getvalue()


def values(size: int) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    """Whole items of about `size` bytes in all, one at least."""
    return np.full((max(1, size // (4 * ITEM_VALUES)), ITEM_VALUES), 0.5, np.float32)


def grpc_picture(size: int) -> Request:
    """An encoded picture over Classify."""
    request = pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=picture(size))])
    return "/convoy.v1.Classifier/Classify", request.SerializeToString(), {}


def grpc_tensor(size: int) -> Request:
    """A raw tensor over ModelInfer."""
    tensor = values(size)
    described = oip.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=tensor.shape)
    request = oip.ModelInferRequest(model_name="tensors", inputs=[described], raw_input_contents=[tensor.tobytes()])
    return "/inference.GRPCInferenceService/ModelInfer", request.SerializeToString(), {}


def rest_picture(size: int) -> Request:
    """An encoded picture as the body."""
    return "/v2/models/digits/infer", picture(size), {"Inference-Header-Content-Length": "0"}


def rest_tensor(size: int) -> Request:
    """A tensor by the binary-data extension."""
    tensor = values(size)
    described = {"name": "x", "datatype": "FP32", "shape": tensor.shape, "parameters": {"binary_data_size": tensor.nbytes}}
    head = json.dumps({"inputs": [described]}).encode()
    return "/v2/models/tensors/infer", head + tensor.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def rest_json(size: int) -> Request:
    """A tensor as JSON numbers."""
    tensor = values(size * 4 // len("0.5, "))
    described = {"name": "x", "datatype": "FP32", "shape": tensor.shape, "data": tensor.ravel().tolist()}
    return "/v2/models/tensors/infer", json.dumps({"inputs": [described]}).encode(), {}


WAYS: dict[str, Callable[[int], Request]] = {
    "gRPC tensor": grpc_tensor,
    "gRPC picture": grpc_picture,
    "REST binary tensor": rest_tensor,
    "REST picture": rest_picture,
    "REST JSON tensor": rest_json,
}


def grpc_sender(port: int) -> Callable[[Request], None]:
    """Sends serialized gRPC requests."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_send_message_length", -1)])

    def send(request: Request) -> None:
        call: Any = channel.unary_unary(request[0])
        call(request[1], timeout=120)

    return send


def rest_sender(port: int) -> Callable[[Request], None]:
    """Sends HTTP requests over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def send(request: Request) -> None:
        connection.request("POST", *request)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise SystemExit(f"{response.status}: {answer[:200]!r}")

    return send


if __name__ == "__main__":
    main()
