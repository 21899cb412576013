"""One request's fate is never another's: any of a batch cancelled at any moment, or poisonous, on a real server."""

import time
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.conftest import SLOW_SECONDS, Serve, put
from tests.integration.test_classify import classify_on
from tests.integration.test_edges import samples
from tests.integration.test_repository import eventually

pytestmark = pytest.mark.usefixtures("checked_states")

POISON = 255


def poisonable(path: Path) -> None:
    """A model of 2x2 gray pictures whose label is the first pixel's remainder by 3, and which fails on a picture of POISON."""
    nodes = [
        helper.make_node("Reshape", ["image", "rows"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["numbers"], to=TensorProto.INT64),
        helper.make_node("Gather", ["numbers", "first"], ["index"], axis=1),
        helper.make_node("Gather", ["table", "index"], ["scores"], axis=0),
    ]
    constants: dict[str, NDArray[np.generic]] = {
        "rows": np.array([-1, 4]), "first": np.array(0), "table": np.eye(3, dtype=np.float32)[np.arange(POISON) % 3],
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "poisonable", [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 2, 2, 1])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def request(model: str, *firsts: int) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model=model, items=[pb.Item(pixels=bytes([first] * 4)) for first in firsts], top_k=1)


def labels(response: pb.ClassifyResponse) -> list[str]:
    return [result.predictions[0].label for result in response.results]


@pytest.mark.timeout(400)  # a dozen examples of a model that takes its time
def test_any_of_a_batch_cancelled_at_any_moment_leaves_the_others_answered(tmp_path: Path, serve: Serve, slow_file: Path) -> None:
    put(slow_file, tmp_path, "slow", 1)
    server = serve(tmp_path)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = classify_on(channel)

        # Sizes of the requests, whether each is cancelled, and when: while they wait, or while they are in the model.
        @given(
            calls=st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=2, max_size=8),
            moment=st.floats(0, 2 * SLOW_SECONDS),
        )
        @settings(max_examples=12, deadline=None)
        def check(calls: list[tuple[int, bool]], moment: float) -> None:
            firsts = [[(7 * call + at) % 2 * 255 for at in range(items)] for call, (items, _) in enumerate(calls)]
            busy = stub.future(request("slow", 0), timeout=60)  # what comes behind it shares batches
            futures = [stub.future(request("slow", *values), timeout=60) for values in firsts]
            time.sleep(moment)
            for future, (_, cancelled) in zip(futures, calls, strict=True):
                if cancelled:
                    future.cancel()
            assert labels(busy.result()) == ["dark"]
            for future, values, (_, cancelled) in zip(futures, firsts, calls, strict=True):
                if not cancelled:
                    assert labels(future.result()) == ["bright" if value else "dark" for value in values]
                else:
                    assert future.cancelled() or future.code() is grpc.StatusCode.OK

        check()
        # The last to be cancelled may still be computed.
        eventually(
            lambda: samples(server)["convoy_inflight_requests", "slow"] == samples(server)["convoy_queue_items", "slow", "1"] == 0
        )


def test_a_poisonous_request_fails_alone_whatever_shares_its_batch(tmp_path: Path, serve: Serve) -> None:
    poisonable(tmp_path / "fragile" / "1" / "model.onnx")
    (tmp_path / "fragile" / "serving.toml").write_text("max_queue_delay_seconds = 0.05\n")  # so that they do share batches
    server = serve(tmp_path)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = classify_on(channel)

        @given(st.lists(st.lists(st.sampled_from([0, 1, 2, 100, POISON]), min_size=1, max_size=4), min_size=1, max_size=8))
        @settings(max_examples=25, deadline=None)
        def check(calls: list[list[int]]) -> None:
            futures = [stub.future(request("fragile", *firsts), timeout=60) for firsts in calls]
            for future, firsts in zip(futures, calls, strict=True):
                if POISON in firsts:
                    assert future.code() is grpc.StatusCode.INTERNAL
                    assert future.details() == "model 'fragile' failed on this request"
                else:
                    assert labels(future.result()) == [str(first % 3) for first in firsts]

        check()
