"""The Python client against real servers: what goes in, and what comes out."""

import asyncio
import io
import json
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.data.datasets import Dataset
from service.client import AsyncClient, CallFailed, Client, messages
from service.errors import UserError
from service.server import Server
from tests.conftest import Serve, put
from tests.integration.client.test_stream import best
from tests.unit.model.metadata_files import UPRIGHT_EXIF, chunk, png_with


def test_pil_images_of_every_mode_are_answered_as_their_files_are(client: Client, digits: Dataset, tmp_path: Path) -> None:
    picture = Image.open(io.BytesIO(digits.test.encoded(0)))
    expected = client.classify([digits.test.encoded(0)], "digits").results
    assert client.classify([picture], "digits").results == expected
    gray = picture.convert("L")
    for mode in ("1", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        assert len(client.classify([gray.convert(mode)], "digits").results) == 1
    white = client.classify([Image.new("L", (28, 28), 255)], "digits").results
    for mode in ("LA", "La", "PA", "RGBA", "RGBa"):  # new ones are clear, on white
        assert client.classify([Image.new(mode, (28, 28))], "digits").results == white
    deep = np.asarray(gray).astype(np.uint16) * 257
    big_endian = Image.frombytes("I;16B", gray.size, deep.astype(">u2").tobytes(), "raw", "I;16B")
    for sixteen_bit in (Image.fromarray(deep), big_endian):
        assert client.classify([sixteen_bit], "digits").results == expected


def test_a_pil_image_that_cannot_be_sent_is_refused(client: Client, digits: Dataset) -> None:
    for mode in ("I", "F"):
        with pytest.raises(UserError, match=f"PIL images of mode {mode} are not accepted"):
            client.classify([Image.new(mode, (28, 28))], "digits")
    closed = Image.open(io.BytesIO(digits.test.encoded(0)))
    closed.close()
    cut = Image.open(io.BytesIO(digits.test.encoded(0)[:-40]))
    for broken in (closed, cut, Image.new("L", (0, 0))):
        with pytest.raises(UserError, match="cannot encode a PIL image as PNG"):
            client.classify([broken], "digits")


def test_a_pil_image_that_is_to_be_turned_is_turned(client: Client, digits: Dataset, tmp_path: Path) -> None:
    picture = Image.open(io.BytesIO(digits.test.encoded(0))).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "turned.jpg"
    picture.save(file, exif=exif, quality=100)
    turned, straight = client.classify([Image.open(file), picture], "digits").results
    assert turned == client.classify([file], "digits").results[0]
    assert turned != straight


def test_a_pil_image_with_broken_metadata_is_taken(client: Client, digits: Dataset) -> None:
    whole = digits.test.encoded(0)
    expected = client.classify([whole], "digits").results
    for name, data in UPRIGHT_EXIF.items():
        assert client.classify([Image.open(io.BytesIO(png_with(whole, chunk(b"eXIf", data))))], "digits").results == expected, name
    profiled = Image.open(io.BytesIO(png_with(whole, chunk(b"iCCP", b"x\0\0" + bytes(4)))))
    assert client.classify([profiled], "digits").results == expected


def test_an_array_of_several_images_is_several_images(client: Client, digits: Dataset) -> None:
    pixels = digits.test.pixels[:10]
    assert client.classify(pixels, "digits").results == client.classify(list(pixels), "digits").results
    gray = pixels[0, :, :, 0]
    assert client.classify([gray.T.copy().T], "digits").results[0] == client.classify(pixels, "digits").results[0]
    with pytest.raises(UserError, match=r"an array of images is uint8\[N,H,W,C\], not of shape \(28, 28, 1\)"):
        client.classify(pixels[0], "digits")
    with pytest.raises(UserError, match=r"pixels of one image are uint8\[H,W,C\], not of shape \(784,\)"):
        client.classify([pixels[0].reshape(-1)], "digits")


def test_a_request_too_large_for_any_message_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_MESSAGE_BYTES", 1000)
    with Client("127.0.0.1:1") as client, pytest.raises(UserError, match="too large: a request holds at most 1000 bytes"):
        client.classify([bytes(1000)], "digits")


def test_the_asynchronous_client_does_the_same(server: Server, digits: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "digit.png"
    file.write_bytes(digits.test.encoded(3))
    at = f"127.0.0.1:{server.grpc_port}"
    with Client(at) as client:
        expected = client.classify([file, digits.test.pixels[3]], "digits").results
        labels = best(client.classify(digits.test.pixels[:100], "digits"))

    async def several() -> AsyncIterator[list[Any]]:
        for index in range(100):
            yield [digits.test.pixels[index]] if index != 7 else [b"nonsense"]

    async def main() -> None:
        async with AsyncClient(at) as client:
            answer = await client.classify([file, digits.test.pixels[3]], "digits")
            assert answer.results == expected
            together = await asyncio.gather(*(client.classify([digits.test.pixels[index]], "digits") for index in range(50)))
            assert [best(each)[0] for each in together] == labels[:50]
            answers = {number: answer async for number, answer in client.classify_stream(several(), "digits", in_flight=8)}
            assert sorted(answers) == list(range(100))
            refused = answers.pop(7)
            assert isinstance(refused, CallFailed)
            assert refused.code == "INVALID_ARGUMENT"
            assert all(best(answer) == [labels[number]] for number, answer in answers.items())
            unmade = client.classify_stream([[file], ["nowhere.png"]], "digits")
            assert (await anext(unmade))[0] == 0
            with pytest.raises(UserError, match="No such file"):
                await anext(unmade)
            with pytest.raises(CallFailed) as caught:
                await client.classify([b"nonsense"], "digits")
            assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", "items[0].encoded")
            assert (await client.model("digits")).labels == [str(digit) for digit in range(10)]
            assert [(each.model, each.state) for each in await client.models()] == [("digits", "READY")]

    asyncio.run(main())


def test_a_call_that_failed_goes_through_a_pool_of_processes(client: Client) -> None:
    with pytest.raises(CallFailed) as caught:
        client.classify([b"nonsense"], "digits")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), vars(again)) == (CallFailed, str(caught.value), vars(caught.value))
    assert again.field == "items[0].encoded"


def test_arguments_that_cannot_be_sent_are_named(server: Server) -> None:
    at = f"127.0.0.1:{server.grpc_port}"
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ("digit.png", {}, "images must be a list"),
        (Path("digit.png"), {}, "images must be a list"),
        (None, {}, "images must be a list"),
        ([1], {}, "an image is bytes"),
        (["a\0b"], {}, "null (byte|character)"),
        ([b""], {"version": 1}, "invalid value for version: 1"),
        ([b""], {"timeout_seconds": "1"}, "invalid value for timeout_seconds: '1'"),
    ]
    several: Any = "4"
    with Client(at) as client:
        for images, fields, said in wrong:
            with pytest.raises(UserError, match=said):
                client.classify(images, "digits", **fields)
        number: Any = 2
        with pytest.raises(UserError, match="invalid value for version: 2"):
            client.model("digits", number)
        with pytest.raises(UserError, match="invalid value for in_flight: '4'"):
            next(client.classify_stream([], "digits", in_flight=several))

    async def main() -> None:
        async with AsyncClient(at) as client:
            for images, fields, said in wrong:
                with pytest.raises(UserError, match=said):
                    await client.classify(images, "digits", **fields)

    asyncio.run(main())


def test_models_say_what_they_are(client: Client, repository: Path, model_file: Path) -> None:
    found = client.model("digits")
    assert (found.model, found.version, found.versions, found.aliases) == ("digits", "1", ["1"], {})
    assert (found.input.name, found.input.dtype, found.input.shape) == ("image", "uint8", (28, 28, 1))
    assert [(output.name, output.dtype, output.shape) for output in found.outputs] == [
        ("probabilities", "float32", (10,)), ("logits", "float32", (10,)),
    ]  # fmt: skip
    assert found.labels == [str(digit) for digit in range(10)]
    assert (found.provider, found.precision, len(found.digest)) == ("cpu", "fp32", 64)
    assert found.contract is not None
    assert found.contract["data"] == "digits"
    assert found.contract["head"] == "softmax"
    assert 0.5 < found.contract["accuracy"] <= 1
    assert len(found.contract["accuracy_interval"]) == 2
    assert "torch" in found.contract["software_versions"]
    assert found.preferred_batch_items[0] == 1
    assert found.preferred_batch_items == sorted(set(found.preferred_batch_items))
    assert found.limits["max_request_items"] == 512
    with pytest.raises(CallFailed, match="NOT_FOUND: no model named 'cats'; served are: digits"):
        client.model("cats")
    with pytest.raises(CallFailed, match=r"NOT_FOUND.*version '7'"):
        client.model("digits", "7")


def test_versions_aliases_and_what_could_not_be_loaded_are_listed(repository: Path, serve: Serve, model_file: Path) -> None:
    put(model_file, repository, "digits", 2)
    (repository / "digits" / "serving.toml").write_text('versions = "all"\n[aliases]\nstable = 1\n')
    (repository / "broken" / "3").mkdir(parents=True)
    (repository / "broken" / "3" / "model.onnx").write_text("nonsense")
    server = serve(repository)
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        broken, *rest = client.models()
        assert (broken.model, broken.version, broken.state) == ("broken", "3", "UNAVAILABLE")
        assert broken.reason
        assert [(each.model, each.version, each.state, each.reason) for each in rest] == [
            ("digits", "1", "READY", ""), ("digits", "2", "READY", ""),
        ]  # fmt: skip
        found = client.model("digits", "stable")
        assert (found.version, found.versions, found.aliases) == ("1", ["2", "1"], {"stable": "1"})


def test_the_client_needs_nothing_of_the_server(server: Server, digits: Dataset, tmp_path: Path) -> None:
    code = (
        "import sys, json\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name.split('.')[0] not in {'torch', 'onnx', 'onnxruntime', 'numpy', 'PIL', 'pydantic', 'export'}, name\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from service.client import Client\n"
        "with Client(sys.argv[1]) as client:\n"
        "    print(json.dumps([client.classify([sys.argv[2]], 'digits').version, client.model('digits').labels[0]]))\n"
    )
    file = tmp_path / "digit.png"
    file.write_bytes(digits.test.encoded(0))
    arguments = [sys.executable, "-c", code, f"127.0.0.1:{server.grpc_port}", str(file)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == ["1", "0"]
