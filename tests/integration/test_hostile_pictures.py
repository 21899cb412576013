"""Pictures that cost far more than their size: each is answered or refused by itself, in bounded memory, and others are served."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from PIL import Image

from service.pb.convoy.v1 import classifier_pb2 as pb
from service.server import Server
from tests.conftest import Serve, Spawn
from tests.hostile_pictures import file_of, ppm_scaled, tiff_noise


@pytest.fixture
def transport_name() -> str:
    """Pictures are decoded behind the transport: once is enough."""
    return "fast"


CLASSIFY = "/convoy.v1.Classifier/Classify"
SMALL = file_of(Image.new("L", (28, 28)), "PNG")
TIFF = file_of(Image.new("L", (28, 28)), "TIFF")
MAX_MESSAGE_BYTES = 100 * 2**20


@pytest.fixture
def impatient(repository: Path, serve: Serve) -> Server:
    """A server that takes half a second for a picture."""
    return serve(repository, decode_seconds=0.5, max_message_bytes=MAX_MESSAGE_BYTES)


@pytest.fixture
def channel(impatient: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{impatient.grpc_port}") as opened:
        yield opened


def classify(channel: grpc.Channel, *files: bytes) -> pb.ClassifyResponse:
    call = channel.unary_unary(CLASSIFY, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString)
    return call(pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=file) for file in files]), timeout=60)


def test_what_takes_too_long_is_named_and_its_request_alone_is_refused(channel: grpc.Channel) -> None:
    outcomes: list[int] = []
    mates = [threading.Thread(target=lambda: outcomes.append(len(classify(channel, TIFF, SMALL).results))) for _ in range(4)]
    for mate in mates:
        mate.start()
    with pytest.raises(grpc.RpcError) as refusal:
        classify(channel, SMALL, TIFF, ppm_scaled())
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.value.details() == "item 2: decoding the image takes longer than 0.5 s"
    for mate in mates:
        mate.join(60)
    assert outcomes == [2] * 4


def test_dear_pictures_do_not_keep_others_waiting(channel: grpc.Channel) -> None:
    """All that decode dear pictures are busy; small and large cheap ones are answered meanwhile."""
    large = file_of(Image.new("L", (600, 600)), "PNG")
    bomb = ppm_scaled()  # seconds of work
    refused: list[str | None] = []

    def be_dear() -> None:
        with pytest.raises(grpc.RpcError) as refusal:
            classify(channel, bomb)
        refused.append(refusal.value.details())

    bombs = [threading.Thread(target=be_dear) for _ in range(16)]
    for thread in bombs:
        thread.start()
    for _ in range(3):
        assert len(classify(channel, SMALL, large).results) == 2
    assert len(refused) < len(bombs)
    for thread in bombs:
        thread.join(60)
    assert set(refused) == {"item 0: decoding the image takes longer than 0.5 s"}


def test_over_http_and_on_the_page_it_is_the_same(impatient: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", impatient.http_port, timeout=60)
    for path, headers in (
        ("/v2/models/digits/infer", {"Inference-Header-Content-Length": "0"}),
        ("/page/classify/digits", {}),
    ):
        for file, status in ((TIFF, 200), (ppm_scaled(), 400)):
            connection.request("POST", path, file, headers)
            response = connection.getresponse()
            answer = response.read()
            assert response.status == status, answer
            assert (status == 400) == ("takes longer than 0.5 s" in str(answer))
            if status == 200 and path.startswith("/page"):
                assert json.loads(answer)["seen"].startswith("data:image/png;base64,")
    connection.close()


def test_what_a_library_says_by_itself_is_not_in_the_log(repository: Path, spawn: Spawn) -> None:
    server = spawn(repository)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel, pytest.raises(grpc.RpcError) as refusal:
        classify(channel, tiff_noise())
    assert refusal.value.details() == "item 0: the image's data are broken or cut short (OSError)"
    assert server.terminate() == 0
    assert "code not yet in table" not in server.log.read_text()
