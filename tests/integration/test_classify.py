"""`convoy.v1.Classifier/Classify` on a real server with a real model."""

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status
from PIL import Image

from export.data.datasets import Dataset
from service.client import CallFailed, Client
from service.errors import UserError
from service.model.loading import load_model
from service.model.preprocessing import decode
from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.conftest import Serve, Spawn, put

Classify = Callable[..., pb.ClassifyResponse]


@pytest.fixture
def stub(channel: grpc.Channel) -> grpc.UnaryUnaryMultiCallable:
    return classify_on(channel)


def classify_on(channel: grpc.Channel) -> grpc.UnaryUnaryMultiCallable:
    return channel.unary_unary(
        "/convoy.v1.Classifier/Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
    )


def encoded(*images: bytes) -> list[pb.Item]:
    return [pb.Item(encoded=image) for image in images]


def refused(stub: grpc.UnaryUnaryMultiCallable, request: pb.ClassifyRequest) -> tuple[str, str, str]:
    """The code, the message and the field violation that a request is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        stub(request, timeout=10)
    error: Any = caught.value
    field = ""
    status = rpc_status.from_call(error)
    if status is not None:
        detail = BadRequest()
        if status.details[0].Unpack(detail):
            field = detail.field_violations[0].field
    return error.code().name, error.details(), field


def test_answers_are_those_of_the_model_in_process(stub: grpc.UnaryUnaryMultiCallable, digits: Dataset, model_file: Path) -> None:
    pngs = [digits.test.encoded(index) for index in range(40)]
    response = stub(pb.ClassifyRequest(model="digits", items=encoded(*pngs), top_k=10, id="abc"), timeout=10)
    loaded = load_model(model_file, "cpu", 1)
    expected = loaded.probabilities(np.stack([decode(png, loaded.contract.input, 1 << 20) for png in pngs]))
    assert (response.model, response.version, response.id) == ("digits", "1", "abc")
    assert len(response.results) == 40
    for result, row in zip(response.results, expected, strict=True):
        assert [found.index for found in result.predictions] == np.argsort(-row, kind="stable").tolist()
        np.testing.assert_allclose([found.probability for found in result.predictions], np.sort(row)[::-1], atol=1e-6)
        assert all(found.label == str(found.index) for found in result.predictions)
    phases = response.phases
    assert all(phases.HasField(name) for name in ("decode_seconds", "queue_seconds", "inference_seconds"))
    assert 0 < phases.inference_seconds < 10


def test_raw_pixels_and_encoded_images_may_be_mixed_and_agree(stub: grpc.UnaryUnaryMultiCallable, digits: Dataset) -> None:
    pixels = digits.test.pixels[0]
    items = [pb.Item(pixels=pixels.tobytes()), pb.Item(encoded=digits.test.encoded(0))]
    raw, png = stub(pb.ClassifyRequest(model="digits", items=items), timeout=10).results
    assert raw == png
    only_raw = stub(pb.ClassifyRequest(model="digits", items=items[:1]), timeout=10)
    assert only_raw.results[0] == raw
    assert not only_raw.phases.HasField("decode_seconds")


@pytest.mark.parametrize(("top_k", "given"), [(0, 5), (1, 1), (10, 10), (4_000_000_000, 10)])
def test_top_k(stub: grpc.UnaryUnaryMultiCallable, digits: Dataset, top_k: int, given: int) -> None:
    response = stub(pb.ClassifyRequest(model="digits", items=encoded(digits.test.encoded(0)), top_k=top_k), timeout=10)
    assert len(response.results[0].predictions) == given


def test_a_request_larger_than_a_batch_comes_back_whole_and_in_order(stub: grpc.UnaryUnaryMultiCallable, digits: Dataset) -> None:
    count = 300
    pixels = digits.test.pixels[:count]
    whole = stub(pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=p.tobytes()) for p in pixels], top_k=1), timeout=20)
    singles = [
        stub(pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=p.tobytes())], top_k=1), timeout=10).results[0]
        for p in pixels[:20]
    ]
    assert len(whole.results) == count
    assert [r.predictions[0].index for r in whole.results[:20]] == [r.predictions[0].index for r in singles]
    found = np.array([result.predictions[0].index for result in whole.results])
    assert (found == digits.test.labels[:count]).mean() > 0.8


@pytest.mark.parametrize("version", ["", "1", "latest"])
def test_the_version_may_be_named(stub: grpc.UnaryUnaryMultiCallable, digits: Dataset, version: str) -> None:
    request = pb.ClassifyRequest(model="digits", version=version, items=encoded(digits.test.encoded(0)))
    assert stub(request, timeout=10).version == "1"


def picture(mode: str, size: tuple[int, int], file_format: str) -> bytes:
    return saved(Image.effect_noise(size, 60).convert(mode), file_format)


def saved(image: Image.Image, file_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_every_format_is_answered(stub: grpc.UnaryUnaryMultiCallable, file_format: str) -> None:
    response = stub(pb.ClassifyRequest(model="digits", items=encoded(picture("RGB", (60, 40), file_format))), timeout=10)
    assert sum(found.probability for found in response.results[0].predictions) <= 1.0001


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2)])
def test_pictures_of_odd_sizes_are_answered(stub: grpc.UnaryUnaryMultiCallable, size: tuple[int, int]) -> None:
    assert len(stub(pb.ClassifyRequest(model="digits", items=encoded(picture("L", size, "PNG"))), timeout=10).results) == 1


def test_a_large_picture_is_decoded_on_the_pool_and_answered(stub: grpc.UnaryUnaryMultiCallable) -> None:
    large = picture("RGB", (2000, 1500), "PNG")
    assert len(large) > 1 << 20
    response = stub(pb.ClassifyRequest(model="digits", items=encoded(large)), timeout=20)
    assert response.phases.decode_seconds > 0


GOOD_PNG = picture("L", (28, 28), "PNG")
BAD_IMAGES = {
    "empty": (b"", "empty (0 bytes)"),
    "text named .png": (b"This is not a picture.\n" * 10, "not an image in a format accepted here: PNG, JPEG"),
    "cut short": (picture("RGB", (60, 60), "PNG")[:-2000], "broken or cut short"),
    "header alone": (GOOD_PNG[:30], "not an image"),
    "too many pixels": (saved(Image.new("L", (6000, 5000)), "JPEG"), "6000 x 5000 pixels; at most 25000000 are accepted"),
    "32-bit pixels": (picture("F", (8, 8), "TIFF"), "32-bit pixels"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_named_and_the_server_goes_on(stub: grpc.UnaryUnaryMultiCallable, name: str) -> None:
    bad, message = BAD_IMAGES[name]
    code, details, field = refused(stub, pb.ClassifyRequest(model="digits", items=encoded(GOOD_PNG, bad)))
    assert code == "INVALID_ARGUMENT"
    assert details.startswith("item 1: ")
    assert message in details
    assert field == "items[1].encoded"
    assert len(stub(pb.ClassifyRequest(model="digits", items=encoded(GOOD_PNG)), timeout=10).results) == 1


def item(size: int) -> list[pb.Item]:
    return [pb.Item(pixels=bytes(size))]


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "pixels of the wrong size": (
        {"items": item(100)}, "INVALID_ARGUMENT",
        "100 bytes of pixels; the model takes 784 (uint8 28 x 28 x 1)", "items[0].pixels"),
    "no items": ({"items": []}, "INVALID_ARGUMENT", "no items", "items"),
    "too many items": ({"items": item(784) * 513}, "INVALID_ARGUMENT", "513 items; at most 512", "items"),
    "a million items": ({"items": [pb.Item()] * 1_000_000}, "INVALID_ARGUMENT", "more fields than any request", ""),
    "an item without content": ({"items": [pb.Item()]}, "INVALID_ARGUMENT", "neither encoded nor pixels", "items[0]"),
    "negative timeout": ({"timeout_seconds": -1}, "INVALID_ARGUMENT", "-1.0 is not between 0 and", "timeout_seconds"),
    "timeout not a number": ({"timeout_seconds": float("nan")}, "INVALID_ARGUMENT", "nan is not between", "timeout_seconds"),
    "endless timeout": ({"timeout_seconds": float("inf")}, "INVALID_ARGUMENT", "inf is not between", "timeout_seconds"),
    "priority": ({"priority": 3}, "INVALID_ARGUMENT", "priority 3 is above the lowest level of this model, 2", "priority"),
    "long id": ({"id": "x" * 257}, "INVALID_ARGUMENT", "more than 256 characters", "id"),
    "unknown model": ({"model": "cats"}, "NOT_FOUND", "no model named 'cats'; served are: digits", ""),
    "no model": ({"model": ""}, "NOT_FOUND", "no model named ''; served are: digits", ""),
    "unknown version": ({"version": "2"}, "NOT_FOUND", "model 'digits' has no version '2'; served are: 1", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_is_refused_clearly(stub: grpc.UnaryUnaryMultiCallable, name: str) -> None:
    fields, code, message, field = BAD_REQUESTS[name]
    request = pb.ClassifyRequest(**{"model": "digits", "items": item(784), **fields})
    answer = refused(stub, request)
    assert answer[0] == code
    assert message in answer[1]
    assert answer[2] == field


@pytest.fixture
def slow(tmp_path: Path, serve: Serve, slow_file: Path) -> Client:
    """A client of a server whose model takes its time: batches of at most 4 items, 8 in the queue."""
    put(slow_file, tmp_path / "slow", "slow", 1)
    (tmp_path / "slow" / "slow" / "serving.toml").write_text("max_batch_size = 4\nmax_queue_items = 8\nmax_request_items = 8\n")
    server = serve(tmp_path / "slow")
    return Client(f"127.0.0.1:{server.grpc_port}")


DARK, BRIGHT = np.zeros((2, 2, 1), np.uint8), np.full((2, 2, 1), 255, np.uint8)


def test_one_of_four_cancelled_while_the_model_runs_leaves_three_answered(slow: Client) -> None:
    with slow, grpc.insecure_channel(slow.server) as channel:
        stub = classify_on(channel)
        pictures = [DARK, BRIGHT, BRIGHT, DARK]
        warm = stub.future(pb.ClassifyRequest(model="slow", items=item(4)), timeout=60)  # keeps the model busy
        time.sleep(0.05)
        calls = [
            stub.future(pb.ClassifyRequest(model="slow", items=[pb.Item(pixels=pixels.tobytes())], top_k=1), timeout=60)
            for pixels in pictures
        ]
        warm.result()
        time.sleep(0.05)  # the four are in the model now, as one batch
        calls[1].cancel()
        labels = [calls[index].result().results[0].predictions[0].label for index in (0, 2, 3)]
        assert labels == ["dark", "bright", "dark"]
        assert calls[1].cancelled()


def test_a_request_that_expires_in_the_queue_is_refused_by_its_deadline(slow: Client) -> None:
    with slow:
        busy = threading.Thread(target=slow.classify, args=([DARK] * 4, "slow"))
        busy.start()
        time.sleep(0.05)
        with pytest.raises(CallFailed) as caught:
            slow.classify([BRIGHT], "slow", timeout_seconds=0.01)
        assert caught.value.code == "DEADLINE_EXCEEDED"
        busy.join()
        assert slow.classify([BRIGHT], "slow", timeout_seconds=30).results[0][0].label == "bright"


def test_images_that_are_being_decoded_count_against_the_queue(slow: Client) -> None:
    with slow, grpc.insecure_channel(slow.server, [("grpc.enable_retries", 0)]) as channel:
        stub = classify_on(channel)
        image = picture("RGB", (1500, 1500), "PNG")
        calls = [stub.future(pb.ClassifyRequest(model="slow", items=encoded(image, image)), timeout=60) for _ in range(12)]
        codes = [call.code().name for call in calls]
        assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
        assert codes.count("OK") >= 4


def test_many_large_pictures_in_one_request_are_decoded_one_by_one(repository: Path, spawn: Spawn) -> None:
    """A picture of 25 megapixels is 75 MB when it is decoded: eight at once would be 600 MB, beside the 150 of a server."""
    buffer = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(buffer, "PNG")
    server = spawn(repository)
    with Client(f"127.0.0.1:{server.grpc_port}", timeout_seconds=120) as client:
        assert len(client.classify([buffer.getvalue()] * 8, "digits").results) == 8
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    peak_kilobytes = int(status.split("VmHWM:")[1].split()[0])
    assert peak_kilobytes < 600_000


def test_a_large_request_is_let_go_when_it_is_answered(repository: Path, spawn: Spawn, digits: Dataset) -> None:
    server = spawn(repository)
    pixels = [digits.test.pixels[0]] * 500  # 392,000 bytes a request
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        resident = []
        for _ in range(4):
            for _ in range(25):
                client.classify(pixels, "digits", top_k=1)
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            resident.append(int(status.split("VmRSS:")[1].split()[0]))
    assert resident[-1] - resident[0] < 15_000, resident


def test_a_full_queue_says_so_and_what_was_taken_in_is_answered(slow: Client) -> None:
    with slow, grpc.insecure_channel(slow.server, [("grpc.enable_retries", 0)]) as channel:
        stub = classify_on(channel)
        calls = [stub.future(pb.ClassifyRequest(model="slow", items=item(4) * 3), timeout=60) for _ in range(8)]
        codes = [call.code().name for call in calls]
        assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
        full = calls[codes.index("RESOURCE_EXHAUSTED")]
        assert "of 8 items wait, the request has 3" in full.details()
        assert int(dict(full.trailing_metadata())["grpc-retry-pushback-ms"]) >= 10


def test_higher_priority_is_served_first(slow: Client) -> None:
    finished: list[str] = []
    with slow, grpc.insecure_channel(slow.server) as channel:
        stub = classify_on(channel)

        def send(name: str, priority: int, items: int) -> grpc.Future:
            request = pb.ClassifyRequest(model="slow", items=item(4) * items, priority=priority)
            future = stub.future(request, timeout=60)
            future.add_done_callback(lambda _: finished.append(name))
            return future

        calls = [send("busy", 2, 4)]
        time.sleep(0.05)
        calls += [send("low", 2, 3), send("high", 1, 3)]  # there is room for both though a half of the first may still wait
        for call in calls:
            call.result()
        deadline = time.monotonic() + 5
        while len(finished) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert finished == ["busy", "high", "low"]


def test_the_client_takes_paths_bytes_and_arrays(
    channel: grpc.Channel, repository: Path, serve: Serve, digits: Dataset, tmp_path: Path
) -> None:
    server = serve(repository)
    file = tmp_path / "digit.png"
    file.write_bytes(digits.test.encoded(3))
    for target in ("", "127.0.0.1", "http://127.0.0.1:8001", "::1:8001", "a b:1"):
        with pytest.raises(UserError, match="HOST:PORT"):
            Client(target)
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        answer = client.classify([file, str(file), digits.test.encoded(3), digits.test.pixels[3]], "digits")
        assert len(answer.results) == 4
        assert all(result == answer.results[0] for result in answer.results)
        assert answer.phases["inference_seconds"] > 0
        with pytest.raises(UserError, match=r"missing\.png: No such file"):
            client.classify([tmp_path / "missing.png"], "digits")
        with pytest.raises(UserError, match="images must be a list"):
            client.classify(str(file), "digits")
        with pytest.raises(UserError, match="not NoneType"):
            client.classify([None], "digits")  # type: ignore[list-item]
        for wrong in ({"top_k": -1}, {"top_k": 1 << 40}, {"version": 1}, {"version": "\udcff"}):
            with pytest.raises(UserError, match="invalid value for"):
                client.classify([file], "digits", **wrong)
        with pytest.raises(UserError, match="must be uint8, not float32"):
            client.classify([np.zeros((28, 28, 1), np.float32)], "digits")
        with pytest.raises(CallFailed) as caught:
            client.classify([b"nonsense"], "digits")
        assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", "items[0].encoded")
