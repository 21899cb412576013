"""Synthetic images: of the size and kind asked for, the same for the same seed, and as large as photographs."""

import io

import pytest
from PIL import Image

from service.bench.images import REQUESTS, Encoding, file_requests, synthetic_requests
from service.pb.convoy.v1 import classifier_pb2 as pb


def parsed(requests: tuple[bytes, ...]) -> list[pb.ClassifyRequest]:
    return [pb.ClassifyRequest.FromString(request) for request in requests]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_synthetic_images_have_the_size_asked_for(encoding: Encoding, channels: int, mode: str) -> None:
    requests = parsed(synthetic_requests("m", "7", 3, (40, 60, channels), encoding, seed=1))
    assert len({request.SerializeToString() for request in requests}) == REQUESTS
    for request in requests:
        assert (request.model, request.version, len(request.items)) == ("m", "7", 3)
        for item in request.items:
            picture = Image.open(io.BytesIO(item.encoded))
            assert (picture.format, picture.mode, picture.size) == (encoding.upper(), mode, (60, 40))


def test_the_seed_decides() -> None:
    made = [synthetic_requests("m", "", 1, (28, 28, 1), "pixels", seed) for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]
    assert all(len(request.items[0].pixels) == 28 * 28 for request in parsed(made[0]))


def test_a_synthetic_jpeg_is_about_as_large_as_a_photograph() -> None:
    (item,) = parsed(synthetic_requests("m", "", 1, (224, 224, 3), "jpeg", 0))[0].items
    bits_per_pixel = 8 * len(item.encoded) / (224 * 224)
    assert 0.8 < bits_per_pixel < 4


def test_files_are_sent_as_they_are() -> None:
    assert [request.items[0].encoded for request in parsed(file_requests("m", "", 1, [b"a", b"b"], 0))] == [b"a", b"b"]
    drawn = parsed(file_requests("m", "", 5, [b"a", b"b"], 0))
    assert {len(request.items) for request in drawn} == {5}
    assert {item.encoded for request in drawn for item in request.items} == {b"a", b"b"}
