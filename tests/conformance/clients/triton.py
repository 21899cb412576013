"""tritonclient: gRPC and HTTP, blocking and asyncio, every call of each, good and bad input.

The four clients have the same calls; `Blocking` makes those of the asyncio ones wait, so that one test goes through all four.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
import tritonclient.utils.shared_memory as shm
from conftest import Server
from tritonclient.utils import InferenceServerException

KINDS = {
    "grpc": (tritonclient.grpc, tritonclient.grpc.InferenceServerClient),
    "grpc.aio": (tritonclient.grpc, tritonclient.grpc.aio.InferenceServerClient),
    "http": (tritonclient.http, tritonclient.http.InferenceServerClient),
    "http.aio": (tritonclient.http, tritonclient.http.aio.InferenceServerClient),
}
EXTENSIONS = {
    "classification", "model_configuration", "model_repository", "schedule_policy", "statistics", "system_shared_memory",
    "binary_tensor_data",
}  # fmt: skip
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
HTTP_STATUS = {
    "INVALID_ARGUMENT": "400", "NOT_FOUND": "404", "UNIMPLEMENTED": "501", "DEADLINE_EXCEEDED": "504", "FAILED_PRECONDITION": "400",
    "RESOURCE_EXHAUSTED": "429",
}  # fmt: skip


class Blocking:
    """A client whose calls wait, whether they are coroutines or not."""

    def __init__(self, client: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            result = getattr(self._client, name)(*arguments, **named)
            return self._loop.run_until_complete(result) if inspect.isawaitable(result) else result

        return call


class Kind:
    """One of the four clients, with the classes that belong to it."""

    def __init__(self, name: str, client: Any) -> None:
        self.name = name
        self.client = client
        self.is_grpc = name.startswith("grpc")
        self.module = KINDS[name][0]

    def json(self, call: str, *arguments: Any) -> Any:
        """A call's answer as plain JSON."""
        return getattr(self.client, call)(*arguments, **({"as_json": True} if self.is_grpc else {}))

    def tensor(self, name: str, array: np.ndarray, datatype: str, **binary: bool) -> Any:
        tensor = self.module.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array, **({} if self.is_grpc else binary))
        return tensor

    def image(self, images: np.ndarray) -> list[Any]:
        return [self.tensor("image", images, "UINT8")]

    def wanted(self, name: str, **options: Any) -> Any:
        return self.module.InferRequestedOutput(name, **options)

    def refuses(self, status: str, message: str, call: Callable[[], Any]) -> None:
        """Holds that a call fails with this gRPC status, or what HTTP has for it, and a message with this in it."""
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert message in caught.value.message()
        assert caught.value.status() == (f"StatusCode.{status}" if self.is_grpc else HTTP_STATUS[status])


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, server: Server) -> Iterator[Kind]:
    loop = asyncio.new_event_loop()

    async def made() -> Any:
        return KINDS[request.param][1](server.grpc if request.param.startswith("grpc") else server.http)

    client = loop.run_until_complete(made()) if request.param.endswith("aio") else asyncio.run(made())
    blocking = Blocking(client, loop)
    yield Kind(request.param, blocking)
    blocking.close()
    loop.close()


def test_health(kind: Kind) -> None:
    client = kind.client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    for version in ("1", "2", "stable", "latest"):
        assert client.is_model_ready("digits", version)
    for name, version in (("digits", "3"), ("nothing", ""), ("broken", "")):
        assert not client.is_model_ready(name, version)


def test_server_metadata_lists_exactly_the_extensions_that_are_there(kind: Kind) -> None:
    metadata = kind.json("get_server_metadata")
    assert metadata["name"] == "convoy"
    assert metadata["version"]
    assert set(metadata["extensions"]) == EXTENSIONS


def test_model_metadata(kind: Kind) -> None:
    metadata = kind.json("get_model_metadata", "digits")
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("digits", ["1", "2"], "onnxruntime_onnx")
    [given] = metadata["inputs"]
    assert (given["name"], given["datatype"], [*map(int, given["shape"])]) == ("image", "UINT8", [-1, 28, 28, 1])
    assert [(o["name"], o["datatype"], [*map(int, o["shape"])]) for o in metadata["outputs"]] == [
        ("probabilities", "FP32", [-1, 10]),
        ("logits", "FP32", [-1, 10]),
    ]
    assert kind.json("get_model_metadata", "digits", "stable")["versions"] == ["1"]
    [given] = kind.json("get_model_metadata", "halves")["inputs"]
    assert (given["name"], given["datatype"], [*map(int, given["shape"])]) == ("data", "FP16", [-1, 3, 2, 2])
    kind.refuses("NOT_FOUND", "no model named 'nothing'", lambda: kind.json("get_model_metadata", "nothing"))
    kind.refuses("NOT_FOUND", "served are: 2, 1, stable (version 1)", lambda: kind.json("get_model_metadata", "digits", "9"))


def test_model_config(kind: Kind) -> None:
    config = kind.json("get_model_config", "digits")
    config = config.get("config", config)
    assert (config["name"], config["platform"], config["backend"]) == ("digits", "onnxruntime_onnx", "onnxruntime")
    assert config["max_batch_size"] == 512
    [given] = config["input"]
    assert (given["name"], given["data_type"], given["format"]) == ("image", "TYPE_UINT8", "FORMAT_NHWC")
    assert [*map(int, given["dims"])] == [28, 28, 1]
    assert [o["name"] for o in config["output"]] == ["probabilities", "logits"]
    batching = config["dynamic_batching"]
    assert int(batching["priority_levels"]) == int(batching["default_priority_level"]) == 2
    assert '"9"' in config["parameters"]["labels"]["string_value"]
    kind.refuses("NOT_FOUND", "no model named 'nothing'", lambda: kind.json("get_model_config", "nothing"))


def test_an_answer_is_that_of_onnx_runtime_to_the_last_bit(kind: Kind, server: Server) -> None:
    """Alone on the server a request of one image is a batch of one, as it was for ONNX Runtime in the other process."""
    for index in range(40):
        result = kind.client.infer("digits", kind.image(server["images"][index : index + 1]))
        for name in ("probabilities", "logits"):
            np.testing.assert_array_equal(result.as_numpy(name), server[name][index : index + 1])
    assert result.as_numpy("nothing") is None


@pytest.mark.parametrize("items", [2, 7, 32])
def test_a_batch_differs_by_no_more_than_the_order_of_sums(kind: Kind, server: Server, items: int) -> None:
    result = kind.client.infer("digits", kind.image(server["images"][:items]))
    for name in ("probabilities", "logits"):
        np.testing.assert_allclose(result.as_numpy(name), server[name][:items], **CLOSE)


def test_a_request_larger_than_a_batch(kind: Kind, server: Server) -> None:
    images = np.tile(server["images"], (5, 1, 1, 1))
    result = kind.client.infer("digits", kind.image(images)).as_numpy("probabilities")
    np.testing.assert_allclose(result, np.tile(server["probabilities"], (5, 1)), **CLOSE)


@pytest.mark.parametrize(("name", "datatype"), [("floats", "FP32"), ("halves", "FP16"), ("doubles", "FP64"), ("bytes", "UINT8")])
def test_every_data_type_that_a_classifier_takes(kind: Kind, server: Server, name: str, datatype: str) -> None:
    result = kind.client.infer(name, [kind.tensor("data", server[f"{name}_data"], datatype, binary_data=True)])
    np.testing.assert_array_equal(result.as_numpy("features"), server[f"{name}_features"])
    np.testing.assert_allclose(result.as_numpy("scores"), server[f"{name}_scores"], **CLOSE)
    if not kind.is_grpc and datatype != "FP16":  # tritonclient sends FP16 in binary alone
        result = kind.client.infer(name, [kind.tensor("data", server[f"{name}_data"], datatype, binary_data=False)])
        np.testing.assert_allclose(result.as_numpy("scores"), server[f"{name}_scores"], **CLOSE)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_encoded_images_as_bytes(kind: Kind, server: Server, pngs: list[bytes], shape: tuple[int, ...]) -> None:
    array = np.array(pngs[:5], np.object_).reshape(shape)
    result = kind.client.infer("digits", [kind.tensor("image", array, "BYTES", binary_data=True)])
    np.testing.assert_allclose(result.as_numpy("logits"), server["logits"][:5], **CLOSE)


def test_requested_outputs_come_alone_and_in_that_order(kind: Kind, server: Server) -> None:
    given = kind.image(server["images"][:2])
    result = kind.client.infer("digits", given, outputs=[kind.wanted("logits")])
    assert result.as_numpy("probabilities") is None
    np.testing.assert_allclose(result.as_numpy("logits"), server["logits"][:2], **CLOSE)
    outputs = [kind.wanted("logits"), kind.wanted("probabilities")]
    result = kind.client.infer("digits", given, outputs=outputs)
    response = result.get_response(**({"as_json": True} if kind.is_grpc else {}))
    assert [output["name"] for output in response["outputs"]] == ["logits", "probabilities"]


def test_classification(kind: Kind, server: Server) -> None:
    outputs = [kind.wanted("probabilities", class_count=3), kind.wanted("logits")]
    result = kind.client.infer("digits", kind.image(server["images"][:4]), outputs=outputs)
    texts = result.as_numpy("probabilities")
    assert texts.shape == (4, 3)
    for row, probabilities in zip(texts, server["probabilities"], strict=False):
        order = np.argsort(-probabilities, kind="stable")[:3]
        for text, index in zip(row, order, strict=True):
            score, number, label = text.decode().split(":")
            assert (int(number), label) == (index, str(index))
            assert float(score) == pytest.approx(probabilities[index], abs=1e-6)
    assert result.as_numpy("logits").shape == (4, 10)
    given = [kind.tensor("data", server["floats_data"], "FP32", binary_data=True)]
    texts = kind.client.infer("floats", given, outputs=[kind.wanted("scores", class_count=100)]).as_numpy("scores")
    assert texts.shape == (6, 3)
    names = ["cat", "dog", "cow"]
    assert [row[0].decode().split(":")[2] for row in texts] == [names[i] for i in server["floats_scores"].argmax(axis=1)]
    kind.refuses(
        "INVALID_ARGUMENT", "has no score for each class",
        lambda: kind.client.infer("floats", given, outputs=[kind.wanted("features", class_count=2)]),
    )  # fmt: skip


def test_a_model_whose_config_has_no_batch_dimension(kind: Kind, server: Server) -> None:
    metadata, config = (kind.json(call, "batchless") for call in ("get_model_metadata", "get_model_config"))
    config = config["config"] if kind.is_grpc else config
    assert [int(size) for size in metadata["inputs"][0]["shape"]] == [3, 2, 2]
    assert [output["name"] for output in metadata["outputs"]] == ["scores"]
    assert int(config.get("max_batch_size", 0)) == 0
    assert [int(size) for size in config["output"][0]["reshape"]["shape"]] == [1, 3]
    given = [kind.tensor("data", server["floats_data"][0], "FP32")]
    result = kind.client.infer("batchless", given)
    np.testing.assert_allclose(result.as_numpy("scores"), server["floats_scores"][0], **CLOSE)
    texts = kind.client.infer("batchless", given, outputs=[kind.wanted("scores", class_count=2)]).as_numpy("scores")
    assert texts.shape == (2,)
    assert texts[0].decode().split(":")[2] == ["cat", "dog", "cow"][server["floats_scores"][0].argmax()]
    kind.refuses(
        "INVALID_ARGUMENT", "takes FP32 [3, 2, 2]",
        lambda: kind.client.infer("batchless", [kind.tensor("data", server["floats_data"][:1], "FP32")]),
    )  # fmt: skip


def test_ids_versions_and_aliases(kind: Kind, server: Server) -> None:
    given = kind.image(server["images"][:1])
    for version, answered in (("", "2"), ("latest", "2"), ("1", "1"), ("stable", "1")):
        result = kind.client.infer("digits", given, model_version=version, request_id=f"id of {version}")
        response = result.get_response(**({"as_json": True} if kind.is_grpc else {}))
        assert (response["model_name"], response["model_version"], response["id"]) == ("digits", answered, f"id of {version}")
    kind.refuses("NOT_FOUND", "has no version '4'", lambda: kind.client.infer("digits", given, model_version="4"))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(kind: Kind, server: Server, algorithm: str) -> None:
    named = ["compression_algorithm"] if kind.is_grpc else ["request_compression_algorithm", "response_compression_algorithm"]
    result = kind.client.infer("digits", kind.image(server["images"][:32]), **dict.fromkeys(named, algorithm))
    np.testing.assert_allclose(result.as_numpy("logits"), server["logits"][:32], **CLOSE)


def test_priority_and_timeout(kind: Kind, server: Server) -> None:
    given = kind.image(server["images"][:1])
    for priority in (0, 1, 2):
        assert kind.client.infer("digits", given, priority=priority, timeout=5_000_000).as_numpy("logits").shape == (1, 10)
    kind.refuses("INVALID_ARGUMENT", "priority 3 is above", lambda: kind.client.infer("digits", given, priority=3))
    slow = kind.image(np.zeros((1, 2, 2, 1), np.uint8))
    # What a batch takes is known once more from the first; a timeout that is shorter is refused at once.
    assert kind.client.infer("slow", slow, timeout=60_000_000).as_numpy("probabilities")[0, 0] > 0.9
    kind.refuses("DEADLINE_EXCEEDED", "deadline", lambda: kind.client.infer("slow", slow, timeout=1000))


BAD: dict[str, tuple[str, np.ndarray, str, str]] = {
    "another data type": ("image", np.zeros((1, 28, 28, 1), np.float32), "FP32",
                          "input 'image' is FP32 [1, 28, 28, 1]; model 'digits' takes UINT8 [-1, 28, 28, 1] or BYTES"),
    "another shape": ("image", np.zeros((1, 28, 28, 3), np.uint8), "UINT8", "is UINT8 [1, 28, 28, 3]; model 'digits' takes"),
    "a picture without the items": ("image", np.zeros((28, 28, 1), np.uint8), "UINT8", "is UINT8 [28, 28, 1]; model"),
    "no items": ("image", np.zeros((0, 28, 28, 1), np.uint8), "UINT8", "no items"),
    "too many items": ("image", np.zeros((513, 28, 28, 1), np.uint8), "UINT8", "513 items; at most 512"),
    "another name": ("picture", np.zeros((1, 28, 28, 1), np.uint8), "UINT8", "no input 'picture'; it takes 'image'"),
    "no image": ("image", np.array([b"nonsense"], np.object_), "BYTES", "item 0: not an image in a format accepted here"),
    "an empty image": ("image", np.array([b""], np.object_), "BYTES", "item 0: the image is empty"),
    "images in a square": ("image", np.array([[b"a", b"b"]] * 2, np.object_), "BYTES", "BYTES [2, 2]: encoded images have"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_named_and_the_server_goes_on(kind: Kind, server: Server, name: str) -> None:
    tensor, array, datatype, message = BAD[name]
    given = [kind.tensor(tensor, array, datatype, binary_data=True)]
    kind.refuses("INVALID_ARGUMENT", message, lambda: kind.client.infer("digits", given))
    assert kind.client.infer("digits", kind.image(server["images"][:1])).as_numpy("logits").shape == (1, 10)


def test_bad_requests_are_named(kind: Kind, server: Server) -> None:
    infer, given = kind.client.infer, kind.image(server["images"][:1])
    wanted = kind.wanted
    for message, call in (
        ("has no output 'nothing'; it gives probabilities, logits", lambda: infer("digits", given, outputs=[wanted("nothing")])),
        ("asked for twice", lambda: infer("digits", given, outputs=[wanted("logits"), wanted("logits")])),
        ("the request has 2 inputs", lambda: infer("digits", given * 2)),
        ("the request has 0 inputs", lambda: infer("digits", [])),
        ("unknown parameter 'colour'", lambda: infer("digits", given, parameters={"colour": "red"})),
        ("model 'floats' takes FP32", lambda: infer("floats", [kind.tensor("data", np.array([b"x"], np.object_), "BYTES")])),
    ):
        kind.refuses("INVALID_ARGUMENT", message, call)
    kind.refuses("UNIMPLEMENTED", "sequences are not offered", lambda: infer("digits", given, sequence_id=5, sequence_start=True))
    kind.refuses("NOT_FOUND", "no model named 'nothing'", lambda: infer("nothing", given))
    kind.refuses("NOT_FOUND", "could not be loaded", lambda: infer("broken", given))


def test_statistics_count_what_happened(kind: Kind, server: Server) -> None:
    def now() -> dict[str, Any]:
        [found] = kind.json("get_inference_statistics", "digits", "1")["model_stats"]
        return found

    def grown(before: Any, after: Any, *path: str) -> int:
        for name in path:
            before, after = before.get(name, {}), after.get(name, {})
        return int(after or 0) - int(before or 0)

    before = now()
    for items in (1, 3, 3):
        kind.client.infer("digits", kind.image(server["images"][:items]), "1")
    with pytest.raises(InferenceServerException):
        kind.client.infer("digits", kind.image(server["images"][:1]), "1", outputs=[kind.wanted("nothing")])
    after, deadline = now(), time.monotonic() + 20
    while grown(before, after, "inference_count") < 7 and time.monotonic() < deadline:  # an answer is counted once it is sent
        time.sleep(0.01)
        after = now()
    assert (grown(before, after, "inference_count"), grown(before, after, "execution_count")) == (7, 3)
    stats = ("inference_stats",)
    for leg in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert grown(before, after, *stats, leg, "count") == 3, leg
        assert (grown(before, after, *stats, leg, "ns") > 0) == (leg != "compute_input"), leg
    assert grown(before, after, *stats, "fail", "count") == 1
    sizes = [
        {int(batch["batch_size"]): int(batch["compute_infer"]["count"]) for batch in s.get("batch_stats", [])}
        for s in (before, after)
    ]
    assert sizes[1].get(3, 0) - sizes[0].get(3, 0) == 2
    assert int(after["last_inference"]) > 1.7e12
    names = {(found["name"], found["version"]) for found in kind.json("get_inference_statistics")["model_stats"]}
    assert {("digits", "1"), ("digits", "2"), ("floats", "1"), ("slow", "1")} <= names
    kind.refuses("NOT_FOUND", "no model named 'nothing'", lambda: kind.json("get_inference_statistics", "nothing"))


def test_the_repository(kind: Kind) -> None:
    def index() -> dict[tuple[str, str], tuple[str, str]]:
        found = kind.json("get_model_repository_index")
        return {
            (entry["name"], entry["version"]): (entry["state"], entry.get("reason", ""))
            for entry in (found["models"] if kind.is_grpc else found)
        }

    client = kind.client
    assert index()["digits", "1"] == index()["digits", "2"] == index()["spare", "7"] == ("READY", "")
    assert index()["broken", "1"][0] == "UNAVAILABLE"
    assert "ONNX Runtime cannot load the file" in index()["broken", "1"][1]
    client.unload_model("spare")
    assert not client.is_model_ready("spare")
    assert index()["spare", "7"] == ("UNAVAILABLE", "unloaded")
    client.load_model("spare")
    assert client.is_model_ready("spare")
    client.load_model("spare")
    client.unload_model("spare", unload_dependents=True)
    client.load_model("spare")
    kind.refuses("NOT_FOUND", "'nothing' is in the repository", lambda: client.load_model("nothing"))
    kind.refuses("NOT_FOUND", "'nothing' is in the repository", lambda: client.unload_model("nothing"))
    kind.refuses("FAILED_PRECONDITION", "'broken' could not be loaded", lambda: client.load_model("broken"))
    kind.refuses("INVALID_ARGUMENT", "only its policy file configures a model", lambda: client.load_model("spare", config="{}"))


def test_system_shared_memory(kind: Kind, server: Server) -> None:
    client, images = kind.client, server["images"][:4]
    key = f"/convoy-{kind.name}"
    whole = shm.create_shared_memory_region("whole", key, 8192)
    try:
        shm.set_shared_memory_region(whole, [images])
        client.register_system_shared_memory("in", key, images.nbytes)
        client.register_system_shared_memory("out", key, 4096, offset=4096)
        found = kind.json("get_system_shared_memory_status")
        found = found["regions"].values() if kind.is_grpc else found
        assert {(r["name"], r["key"], int(r.get("offset", 0)), int(r["byte_size"])) for r in found} == {
            ("in", key, 0, images.nbytes), ("out", key, 4096, 4096),
        }  # fmt: skip
        assert kind.json("get_system_shared_memory_status", "in")
        kind.refuses("NOT_FOUND", "no shared memory region 'x'", lambda: kind.json("get_system_shared_memory_status", "x"))

        given = kind.module.InferInput("image", [4, 28, 28, 1], "UINT8")
        given.set_shared_memory("in", images.nbytes)
        logits = kind.wanted("logits")
        logits.set_shared_memory("out", 160, offset=100)
        result = client.infer("digits", [given], outputs=[logits])
        written = shm.get_contents_as_numpy(whole, np.float32, [4, 10], offset=4096 + 100)
        np.testing.assert_allclose(written, server["logits"][:4], **CLOSE)
        if kind.is_grpc:
            assert result.get_output("logits").parameters["shared_memory_byte_size"].int64_param == 160

        logits.set_shared_memory("out", 159)
        refuse = kind.refuses
        refuse(
            "INVALID_ARGUMENT",
            "has 160 bytes; its place in shared memory has 159",
            lambda: client.infer("digits", [given], outputs=[logits]),
        )
        logits.set_shared_memory("nowhere", 160)
        refuse("NOT_FOUND", "no shared memory region 'nowhere'", lambda: client.infer("digits", [given], outputs=[logits]))
        given.set_shared_memory("in", images.nbytes, offset=1)
        refuse("INVALID_ARGUMENT", "are not inside shared memory region 'in'", lambda: client.infer("digits", [given]))
        given.set_shared_memory("in", images.nbytes - 1)
        refuse("INVALID_ARGUMENT", "the input has 3135 bytes", lambda: client.infer("digits", [given]))
        register = client.register_system_shared_memory
        refuse("INVALID_ARGUMENT", "is registered already", lambda: register("in", key, 10))
        refuse(
            "INVALID_ARGUMENT", "has 8192 bytes; a region of 8000 bytes at 1000", lambda: register("far", key, 8000, offset=1000)
        )
        refuse("INVALID_ARGUMENT", "cannot be opened", lambda: register("missing", "/convoy-missing", 10))
        refuse("INVALID_ARGUMENT", "names begin with convoy-", lambda: register("other", "/others", 10))
        refuse("INVALID_ARGUMENT", "cannot be the name", lambda: register("up", "../../etc/passwd", 10))
        client.unregister_system_shared_memory("in")
        client.unregister_system_shared_memory("never registered")
        given.set_shared_memory("in", images.nbytes)
        refuse("NOT_FOUND", "no shared memory region 'in'", lambda: client.infer("digits", [given]))
    finally:
        client.unregister_system_shared_memory()
        shm.destroy_shared_memory_region(whole)
    found = kind.json("get_system_shared_memory_status")
    assert not (found.get("regions") if kind.is_grpc else found)


def test_what_is_not_offered_says_so(kind: Kind) -> None:
    client = kind.client
    for message, call in (
        ("CUDA shared memory is not offered", client.get_cuda_shared_memory_status),
        ("CUDA shared memory is not offered", client.unregister_cuda_shared_memory),
        ("CUDA shared memory is not offered", lambda: client.register_cuda_shared_memory("x", b"aGFuZGxl", 0, 10)),
        ("trace settings are not offered", client.get_trace_settings),
        ("trace settings are not offered", lambda: client.get_trace_settings("digits")),
        ("trace settings are not offered", lambda: client.update_trace_settings(settings={"trace_rate": "1"})),
        ("log settings are not offered", client.get_log_settings),
        ("log settings are not offered", lambda: client.update_log_settings({"log_info": True})),
    ):
        kind.refuses("UNIMPLEMENTED", message, call)


def test_many_at_a_time(kind: Kind, server: Server) -> None:
    given = [kind.image(server["images"][index : index + 1]) for index in range(40)]
    if kind.name == "grpc":
        answered: list[Any] = []
        for index in range(40):
            kind.client.async_infer("digits", given[index], lambda result, error, i=index: answered.append((i, result, error)))
        for _ in range(1000):
            if len(answered) == 40:
                break
            kind.client.is_server_live()
        assert not any(error for _, _, error in answered)
        results = [result for _, result, _ in sorted(answered, key=lambda each: each[0])]
    elif kind.name == "http":
        results = [request.get_result() for request in [kind.client.async_infer("digits", each) for each in given]]
    else:
        client, loop = kind.client._client, kind.client._loop

        async def all_at_once() -> list[Any]:
            return await asyncio.gather(*(client.infer("digits", each) for each in given))

        results = loop.run_until_complete(all_at_once())
    found = np.concatenate([result.as_numpy("logits") for result in results])
    np.testing.assert_allclose(found, server["logits"], **CLOSE)


def test_every_call_of_the_client_is_called_here(kind: Kind) -> None:
    """A call that a later tritonclient adds is to be added here, or to what is not a call to the server."""
    names = {name for name, _ in inspect.getmembers(KINDS[kind.name][1], inspect.isfunction) if not name.startswith("_")}
    text = inspect.getsource(inspect.getmodule(test_health)) + "start_stream stop_stream async_stream_infer stream_infer"
    plugins = {"plugin", "register_plugin", "unregister_plugin", "generate_request_body", "parse_response_body"}
    missing = [name for name in names - plugins if name not in text]
    assert not missing
