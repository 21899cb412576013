"""`Local` answers as a `Client` of a server with the same models does, and leaves nothing behind."""

import gc
import io
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service import Local
from service.client import CallFailed, Classification, Client, Explanation, Outcome
from service.config import ServerConfig
from service.errors import UserError
from service.local import many
from service.local.many import WINDOW
from service.server import Server
from tests.conftest import put
from tests.integration.test_explain import photo
from tests.integration.test_explain import write_model as write_colors
from tests.integration.test_foreign import write
from tests.integration.test_heads import write_model

Ask = Callable[[Client | Local], Any]


def picture(mode: str = "L", size: tuple[int, int] = (28, 28)) -> bytes:
    content = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert(mode).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Path:
    """A repository: digits in two versions; two heads; activations and embeddings; another origin; what does not load."""
    folder = tmp_path_factory.mktemp("local") / "models"
    for version in (1, 2):
        put(model_file, folder, "digits", version)
    policy = ("versions = 'all'", "max_request_items = 8", "max_image_pixels = 1_000_000", "aliases = {stable = 1}")
    (folder / "digits" / "serving.toml").write_text("\n".join(policy))
    write_model(folder / "two" / "1" / "model.onnx")
    write_colors(folder / "colors" / "1" / "model.onnx", hidden=True)
    write(folder / "foreign" / "1" / "model.onnx")
    (folder / "broken" / "1").mkdir(parents=True)
    (folder / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    return folder


@pytest.fixture(scope="module")
def both(models: Path) -> Iterator[tuple[Client, Local]]:
    settings = {"repository": models, "grpc_port": 0, "http_port": 0, "provider": "cpu"}
    server = Server(ServerConfig.model_validate(settings))
    server.start()
    try:
        with Client(f"127.0.0.1:{server.grpc_port}") as client, Local(models, provider="cpu") as local:
            yield client, local
    finally:
        server.stop()


PIXELS = np.arange(4 * 28 * 28, dtype=np.uint8).reshape(4, 28, 28, 1)
REQUESTS: dict[str, Ask] = {
    "a picture": lambda asked: asked.classify([picture()], "digits"),
    "a large picture": lambda asked: asked.classify([picture("RGB", (900, 700))], "digits", top_k=3),
    "pixels": lambda asked: asked.classify(PIXELS, "digits", top_k=10),
    "a PIL image and pixels": lambda asked: asked.classify([Image.new("L", (30, 20), 90), PIXELS[0]], "digits"),
    "a version": lambda asked: asked.classify(PIXELS, "digits", version="1"),
    "an alias": lambda asked: asked.classify(PIXELS, "digits", version="stable"),
    "heads": lambda asked: asked.classify([picture("RGB", (4, 4))], "two"),
    "many labels": lambda asked: asked.classify(PIXELS, "digits", top_k=1000),
    "the metadata": lambda asked: replace(asked.model("digits"), preferred_batch_items=[]),  # which are measured
    "the metadata of heads": lambda asked: replace(asked.model("two", "1"), preferred_batch_items=[]),
    "the metadata of a foreign model": lambda asked: replace(asked.model("foreign"), preferred_batch_items=[]),
    "the models": lambda asked: asked.models(),
    "a stream": lambda asked: sorted(asked.classify_stream([[picture()], [b"none"], PIXELS, [], [PIXELS[0]] * 9], "digits")),
    "embeddings": lambda asked: asked.classify([photo()], "colors", embeddings=True),
    "embeddings in a stream": lambda asked: list(asked.classify_stream([[photo()]], "colors", embeddings=True)),
    "embeddings of many": lambda asked: [each.answer for each in asked.classify_many([photo()], "colors", embeddings=True)],
    "no embeddings": lambda asked: asked.classify([picture()], "digits", embeddings=True),
    "no embeddings in a stream": lambda asked: list(asked.classify_stream([[picture()]], "digits", embeddings=True)),
    "no embeddings of many": lambda asked: list(asked.classify_many([picture()], "digits", embeddings=True)),
    "embeddings that are no truth": lambda asked: asked.classify([picture()], "digits", embeddings="yes"),  # type: ignore[arg-type]
    "class activation": lambda asked: asked.explain([photo(), photo()], "colors"),
    "occlusion": lambda asked: asked.explain([picture(), PIXELS[0]], "digits"),
    "an explanation of another label": lambda asked: asked.explain(PIXELS[:1], "digits", "7", version="1"),
    "a label that is none": lambda asked: asked.explain([picture()], "digits", "10"),
    "a label that is no text": lambda asked: asked.explain([picture()], "digits", 7),  # type: ignore[arg-type]
    "an explanation of no picture": lambda asked: asked.explain([picture(), b"no picture"], "digits"),
    "explanations of nothing": lambda asked: asked.explain([], "digits"),
    "too many explanations": lambda asked: asked.explain([picture()] * 5, "digits"),
    "an explanation of a foreign model": lambda asked: asked.explain([picture()], "foreign"),
    "an explanation of no model": lambda asked: asked.explain([picture()], "cats"),
    "no time to explain": lambda asked: asked.explain([picture()], "digits", timeout_seconds=1e-9),
    "an explanation of floats": lambda asked: asked.explain([np.zeros((28, 28, 1))], "digits"),
    "no picture": lambda asked: asked.classify([picture(), b"no picture"], "digits"),
    "a broken picture": lambda asked: asked.classify([picture()[:90]], "digits"),
    "no items": lambda asked: asked.classify([], "digits"),
    "too many items": lambda asked: asked.classify([PIXELS[0]] * 9, "digits"),
    "far too many items": lambda asked: asked.classify([PIXELS[0]] * 600, "digits"),
    "pixels of another size": lambda asked: asked.classify(PIXELS[:, :20], "digits"),
    "a picture for a foreign model": lambda asked: asked.classify([picture()], "foreign"),
    "no such model": lambda asked: asked.classify([picture()], "cats"),
    "a model that did not load": lambda asked: asked.classify([picture()], "broken"),
    "no such version": lambda asked: asked.classify([picture()], "digits", version="3"),
    "the metadata of no model": lambda asked: asked.model("cats"),
    "no such priority": lambda asked: asked.classify([picture()], "digits", priority=9),
    "a priority that is none": lambda asked: asked.classify([picture()], "digits", priority=-1),
    "a timeout that is none": lambda asked: asked.classify([picture()], "digits", timeout_seconds=-1.0),
    "no time": lambda asked: asked.classify([picture("RGB", (900, 700))], "digits", timeout_seconds=1e-9),
    "a file that is not there": lambda asked: asked.classify(["none.png"], "digits"),
    "floats": lambda asked: asked.classify([np.zeros((28, 28, 1))], "digits"),
    "a string": lambda asked: asked.classify("digit.png", "digits"),
    "many of a path": lambda asked: list(asked.classify_many("digit.png", "digits")),
    "many of a Path": lambda asked: list(asked.classify_many(Path("digit.png"), "digits")),  # type: ignore[arg-type]
    "many of a picture": lambda asked: list(asked.classify_many(picture(), "digits")),  # type: ignore[arg-type]
    "many of a number": lambda asked: list(asked.classify_many(5, "digits")),  # type: ignore[arg-type]
    "many and no time": lambda asked: list(asked.classify_many([picture()], "digits", wait_seconds=-1)),
    "many of nothing": lambda asked: list(asked.classify_many([], "cats")),
    "many that cannot be read": lambda asked: list(asked.classify_many(["none.png"], "cats")),
    "many without a model": lambda asked: list(asked.classify_many([picture()], "cats")),
    "many without a version": lambda asked: list(asked.classify_many([picture()] * 9, "digits", version="7")),
    "no room in flight": lambda asked: list(asked.classify_stream([], "digits", in_flight=0)),
}


class Close:
    """Numbers that equal others of the same shape which differ by less than `within`."""

    def __init__(self, values: Any, within: float) -> None:
        self._values, self._within = np.asarray(values, np.float32), within

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Close)
        return self._values.shape == other._values.shape and bool(np.abs(self._values - other._values).max() < self._within)

    __hash__ = None  # type: ignore[assignment]


def outcome(ask: Ask, asked: Client | Local) -> Any:
    """What is returned or raised, comparable, without what is measured."""
    try:
        return comparable(ask(asked))
    except (CallFailed, UserError) as error:
        return comparable(error)


def comparable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [comparable(each) for each in value]
    if isinstance(value, Classification):
        return replace(value, phases=dict.fromkeys(value.phases, 0.0))
    if isinstance(value, Explanation):
        overlay = Image.open(io.BytesIO(value.overlay))
        # Hidden copies are computed in batches of any size, which differ in the last bits.
        return value.prediction, value.method, Close(value.heat, 1e-4), overlay.mode, Close(overlay, 2)
    if isinstance(value, CallFailed):
        return type(value), value.code, value.message, value.field, value.retry_after_seconds
    return (type(value), str(value)) if isinstance(value, UserError) else value


@pytest.mark.parametrize("request_", REQUESTS)
def test_every_request_has_the_same_outcome_as_over_grpc(both: tuple[Client, Local], request_: str) -> None:
    client, local = both
    expected = outcome(REQUESTS[request_], client)
    assert outcome(REQUESTS[request_], local) == expected


@pytest.mark.parametrize("label", [0, False, [], 7])
def test_a_label_that_is_no_text_is_refused_also_if_it_is_nothing(both: tuple[Client, Local], label: Any) -> None:
    for asked in both:
        with pytest.raises(UserError, match="invalid value for label: "):
            asked.explain([picture()], "digits", label)


def test_the_model_may_be_left_out_where_there_is_one(both: tuple[Client, Local], models: Path) -> None:
    _, repository = both
    with pytest.raises(UserError, match="which model\\? There are colors, digits, foreign, two"):
        repository.classify(PIXELS)
    with Local(models / "digits", cpus=1) as local:
        assert comparable(local.classify(PIXELS)) == comparable(repository.classify(PIXELS, "digits"))


def served(path: Path) -> list[str]:
    with Local(path, cpus=1) as local:
        local.classify(np.zeros((1, *local.model().input.shape), np.uint8))
        return [f"{each.model} {each.version}" for each in local.models()]


def test_a_path_is_a_file_a_version_a_model_or_a_repository(models: Path, tmp_path: Path) -> None:
    assert served(models / "digits") == ["digits 1", "digits 2"]  # as its serving.toml says
    assert served(models / "digits" / "1") == ["digits 1"]
    assert served(models / "digits" / "2" / "model.onnx") == ["digits 2"]
    shutil.copy(models / "digits" / "1" / "model.onnx", tmp_path / "best model.onnx")
    assert served(tmp_path / "best model.onnx") == ["digits 1"]  # as its contract says


def test_a_file_has_what_is_beside_it(tmp_path: Path) -> None:
    file = write(tmp_path / "export" / "my cat.onnx", 2)  # uint8
    (file.parent / "labels.txt").write_text("red\ngreen\nblue\n")
    (file.parent / "serving.toml").write_text("max_request_items = 3\n")
    with Local(file, cpus=1) as local:
        info = local.model()
    assert (info.model, info.labels, info.limits["max_request_items"]) == ("my-cat", ["red", "green", "blue"], 3)


def test_a_path_without_a_model_is_refused_in_a_line(models: Path, tmp_path: Path) -> None:
    for path, message in {
        tmp_path / "none": "there is no such file or folder; accepted are a model file",
        tmp_path: "there is no model in it; accepted are a model file",
        models / "broken": "broken: model 'broken' could not be loaded: version 1: ",
        models / "digits" / "serving.toml": "could not be loaded: version 1: ",
    }.items():
        with pytest.raises(UserError, match=f"^{path}: ") as caught:
            Local(path)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_arguments_that_mean_nothing_are_refused(models: Path) -> None:
    with pytest.raises(UserError, match="invalid value for provider: 'gpu' \\(accepted are auto, cuda"):
        Local(models, provider="gpu")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="invalid value for cpus: 0"):
        Local(models, cpus=0)


def test_nothing_is_left_of_one_that_is_closed_or_forgotten(models: Path) -> None:
    before = set(threading.enumerate())
    with Local(models / "digits", cpus=1) as local:
        local.classify([picture()])
        assert local.explain([picture()])[0].method == "occlusion"
        assert set(threading.enumerate()) > before
    wait_for_threads(before)
    with pytest.raises(CallFailed, match="CANCELLED: the client is closed"):
        local.classify([picture()])
    local = Local(models / "digits", cpus=1)
    stream = local.classify_stream([[picture()]] * 9)
    next(stream)
    del local, stream
    gc.collect()
    wait_for_threads(before)


def wait_for_threads(expected: set[threading.Thread]) -> None:
    until = time.monotonic() + 30
    while set(threading.enumerate()) - expected and time.monotonic() < until:
        time.sleep(0.01)  # not `join`, which one that is only about to start does not take
    assert not set(threading.enumerate()) - expected


def test_a_stream_takes_no_more_than_it_may_and_loses_nothing_to_a_full_queue(models: Path) -> None:
    taken = []

    def requests() -> Iterator[Any]:
        for number in range(500):
            taken.append(number)
            yield PIXELS[[0] * 8]

    with Local(models / "digits", cpus=1) as local:
        answers = local.classify_stream(requests(), in_flight=400)  # 3,200 items, and the queue takes 1,024
        next(answers)
        assert len(taken) <= 402
        rest = list(answers)
    assert len(rest) == 499
    assert all(isinstance(answer, Classification) for _, answer in rest)


def test_closing_cancels_what_others_wait_for(slow_file: Path, tmp_path: Path) -> None:
    shutil.copy(slow_file, tmp_path)
    (tmp_path / "serving.toml").write_text("max_batch_size = 1\n")
    local = Local(tmp_path / slow_file.name)
    pixels = np.zeros((1, 2, 2, 1), np.uint8)
    found: list[Any] = []
    asking = [threading.Thread(target=lambda: found.append(outcome(lambda _: local.classify(pixels), local))) for _ in range(9)]
    answers = local.classify_stream([pixels] * 99, in_flight=64)
    assert isinstance(next(answers)[1], Classification)
    for each in asking:
        each.start()
    until = time.monotonic() + 60
    while len(local._engine._running) < 60 and time.monotonic() < until:
        time.sleep(0.01)
    closing = threading.Thread(target=local.close)
    closing.start()
    with pytest.raises(CallFailed, match="CANCELLED: the client is closed"):
        assert all(isinstance(answer, Classification) for _, answer in answers)
    for each in [*asking, closing]:
        each.join(60)
    said = {each[2] if isinstance(each, tuple) else type(each) for each in found}
    assert said <= {"the client is closed", Classification}
    assert len(found) == 9


def test_closing_cancels_an_explanation_that_another_waits_for(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "digits" / "1" / "model.onnx", tmp_path)
    (tmp_path / "serving.toml").write_text("max_explain_items = 10_000\nmax_batch_size = 1\n")
    local = Local(tmp_path / "model.onnx", cpus=1)
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(outcome(lambda _: local.explain([picture()] * 100), local)))
    asking.start()
    until = time.monotonic() + 60
    while not local._engine._explainer._running and time.monotonic() < until:
        time.sleep(0.01)
    local.close()
    asking.join(60)
    assert [each[1:3] for each in found] == [("CANCELLED", "the client is closed")]


def test_a_client_may_give_an_explanation_more_time_than_the_model_does(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "digits" / "1" / "model.onnx", tmp_path)
    shutil.copy(models / "colors" / "1" / "model.onnx", tmp_path / "colors.onnx")
    (tmp_path / "serving.toml").write_text("default_timeout_seconds = 1e-6\n")
    for file, content in (("model.onnx", picture()), ("colors.onnx", photo())):
        with Local(tmp_path / file, cpus=1) as local:
            assert len(local.explain([content], timeout_seconds=300)) == 1
            with pytest.raises(CallFailed, match="DEADLINE_EXCEEDED"):
                local.explain([content])


def test_it_cannot_be_pickled_and_says_what_to_do(both: tuple[Client, Local]) -> None:
    with pytest.raises(TypeError, match="Make one in each worker"):
        pickle.dumps(both[1])


def in_child(models: Path, local: Local, found: Any) -> None:
    try:
        local.classify(PIXELS)
    except UserError as error:
        found.put(str(error))
    local.close()
    found.put(served(models / "digits" / "1"))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_process_makes_one_of_its_own(models: Path) -> None:
    fork = multiprocessing.get_context("fork")
    with Local(models / "digits", cpus=1) as local:
        local.classify(PIXELS)
        found = fork.Queue()
        child = fork.Process(target=in_child, args=(models, local, found))
        child.start()
        try:
            assert "make one in each process" in found.get(timeout=60)
            assert found.get(timeout=60) == ["digits 1"]
            child.join(60)
            assert child.exitcode == 0
        finally:
            child.kill()
            child.join()
        assert local.classify(PIXELS).results


def answers(found: Iterable[Outcome]) -> list[str]:
    """For each outcome the label, or what the error says."""
    return [each.answer.results[0][0].label if isinstance(each.answer, Classification) else str(each.answer) for each in found]


def test_each_of_many_images_has_one_outcome_in_order(both: tuple[Client, Local], tmp_path: Path) -> None:
    client, local = both
    (tmp_path / "digit.png").write_bytes(picture())
    kinds: list[Any] = [tmp_path / "digit.png", str(tmp_path / "digit.png"), picture(), PIXELS[0], Image.new("L", (30, 20), 90)]
    broken: list[Any] = [b"broken", "none.png", np.zeros((28, 28, 1)), PIXELS[0, :9], picture("RGB", (1200, 1000)), 7]
    expected = [local.classify([image], "digits").results[0][0].label for image in kinds]
    images = [*kinds, *broken, *kinds * 60]
    found = list(local.classify_many(iter(images), "digits"))
    assert [(each.index, each.image) for each in found] == list(enumerate(images))
    labels = answers(found)
    assert labels[:5] == expected
    assert labels[11:] == expected * 60
    for each, image in zip(found[5:11], broken, strict=True):
        with pytest.raises((CallFailed, UserError)) as alone:
            local.classify([image], "digits")
        assert comparable(each.answer) == comparable(alone.value)  # as if it had been alone
    over_grpc = list(client.classify_many(iter(images), "digits"))
    assert answers(over_grpc) == labels
    assert [comparable(each.answer) for each in over_grpc[5:11]] == [comparable(each.answer) for each in found[5:11]]
    assert sorted(each.index for each in local.classify_many(images, "digits", ordered=False)) == list(range(len(images)))


def test_many_images_have_a_row_in_each_head(both: tuple[Client, Local]) -> None:
    _, local = both
    pictures = [picture("RGB", (4, 4)), picture("RGB", (90, 7))] * 40
    found = [each.answer for each in local.classify_many(pictures, "two", top_k=1)]
    assert [comparable(each) for each in found] == [comparable(local.classify([each], "two", top_k=1)) for each in pictures]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "cats"}, "NOT_FOUND: no model named 'cats'"),
        ({"model": "digits", "version": "9"}, "NOT_FOUND: "),
        ({"model": "digits", "priority": 9}, "INVALID_ARGUMENT: priority 9"),
        ({"model": "digits", "top_k": -1}, "invalid value for top_k"),
    ],
)
def test_what_concerns_every_image_ends_it(both: tuple[Client, Local], arguments: dict[str, Any], message: str) -> None:
    for asked in both:
        with pytest.raises((CallFailed, UserError), match=message):
            list(asked.classify_many([picture()] * 3, **arguments))


def test_an_error_of_the_images_comes_after_their_outcomes(both: tuple[Client, Local]) -> None:
    _, local = both

    def images() -> Iterator[bytes]:
        yield from [picture()] * 3
        raise OSError("the disk is gone")

    found = local.classify_many(images(), "digits")
    assert [next(found).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


class Unreadable(os.PathLike[str]):
    def __fspath__(self) -> str:
        raise RuntimeError("no such volume")


def test_an_error_that_nobody_expects_of_an_image_is_raised(both: tuple[Client, Local]) -> None:
    for asked in both:
        with pytest.raises(RuntimeError, match="no such volume"):
            list(asked.classify_many([picture(), Unreadable(), picture()], "digits"))


def test_threads_that_cannot_be_started_are_done_without(
    both: tuple[Client, Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(many, "PATIENCE_SECONDS", 0.0)
    (tmp_path / "digit.png").write_bytes(picture())
    allowed = 1
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        nonlocal allowed
        if thread.name == "classify-many":
            allowed -= 1
            if allowed < 0:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert len(list(both[1].classify_many([tmp_path / "digit.png"] * 100, "digits"))) == 100
    with pytest.raises(RuntimeError, match="can't start new thread"):
        next(both[1].classify_many([picture()], "digits"))


def test_a_forked_process_ends_whoever_held_the_lock(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Local(models / "digits", cpus=1) as local, local._engine._lock, monkeypatch.context() as forked:
        forked.setattr(local._engine, "_process", -1)
        closing = threading.Thread(target=local._engine.close, daemon=True)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()


def test_an_image_is_answered_before_the_next_one_comes(both: tuple[Client, Local]) -> None:
    _, local = both
    answered = threading.Semaphore(0)

    def images() -> Iterator[bytes]:
        for _ in range(5):
            yield picture()
            assert answered.acquire(timeout=60)

    for _ in local.classify_many(images(), "digits"):
        answered.release()


def test_memory_is_bounded_whoever_is_slow(both: tuple[Client, Local]) -> None:
    _, local = both
    taken = 0

    def images() -> Iterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            yield PIXELS[0]

    before = set(threading.enumerate())
    found = local.classify_many(images(), "digits")
    for index in range(2000):
        assert next(found).index == index
        assert taken <= index + 2 * WINDOW
    found.close()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "classify-many"]
    assert local.classify([picture()], "digits").results


def test_the_pixels_of_images_that_are_taken_and_not_given_back_are_bounded(both: tuple[Client, Local]) -> None:
    _, local = both
    taken, too_many = 0, threading.Event()

    def images() -> Iterator[Image.Image]:
        nonlocal taken
        while True:
            taken += 1
            if taken > 1 + 1 + -(-many.OPEN_BYTES // (900 * 1000 * 4)):  # one is given back, one asked for while there was room
                too_many.set()
            yield Image.new("RGB", (900, 1000), (taken % 256, 0, 0))

    found = local.classify_many(images(), "digits")
    next(found)
    assert not too_many.wait(0.5)
    found.close()


def test_an_image_may_be_overwritten_once_the_next_is_asked_for(
    both: tuple[Client, Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(many, "PATIENCE_SECONDS", 0.0)
    (tmp_path / "digit.png").write_bytes(picture())
    content = np.random.default_rng(0).integers(0, 256, (60, 28, 28, 1), np.uint8)
    canvas, pixels = Image.new("L", (28, 28)), np.zeros((28, 28, 1), np.uint8)

    def images() -> Iterator[Any]:
        for each in content:
            yield from [tmp_path / "digit.png"] * 8  # for which more threads are started
            canvas.paste(Image.fromarray(each[..., 0]))
            yield canvas
            pixels[:] = each
            yield pixels

    found = [each.answer for each in both[1].classify_many(images(), "digits", top_k=1)]
    expected = [each.answer for each in both[1].classify_many(list(content), "digits", top_k=1)]
    for kind in (8, 9):
        assert best(found[kind::10]) == best(expected)


def best(found: Iterable[Any]) -> list[tuple[str, float]]:
    return [(each.results[0][0].label, round(each.results[0][0].probability, 3)) for each in found]


def test_files_that_are_slow_to_read_are_read_by_more_threads(
    both: tuple[Client, Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(many, "PATIENCE_SECONDS", 0.0)
    (tmp_path / "digit.png").write_bytes(picture())
    names = set()
    paths = (names.add(threading.current_thread()) or tmp_path / "digit.png" for _ in range(300))  # type: ignore[func-returns-value]
    assert len(list(both[1].classify_many(paths, "digits"))) == 300
    assert 1 < len(names) <= many.READERS


class SlowPath:
    """A file that takes a while to open."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds

    def __fspath__(self) -> str:
        time.sleep(self.seconds)
        return str(self.path)


def test_a_long_wait_for_a_file_starts_no_more_threads_by_itself(
    both: tuple[Client, Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "PATIENCE_SECONDS", 60.0)  # in place of less, for a busy machine
    (tmp_path / "digit.png").write_bytes(picture())
    names = set()

    def paths() -> Iterator[Any]:
        for index in range(300):
            names.add(threading.current_thread())
            yield SlowPath(tmp_path / "digit.png", 10 * many.SLOW_SECONDS if index % 100 == 50 else 0.0)

    assert len(list(both[1].classify_many(paths(), "digits"))) == 300
    assert len(names) == 1


def test_small_pictures_are_decoded_by_who_submits_them_and_large_ones_are_not(models: Path) -> None:
    large = picture("RGB", (300, 300))
    with Local(models / "digits", provider="cpu") as local:
        before = set(threading.enumerate())

        def decoders() -> list[threading.Thread]:
            return [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("decode")]

        small = answers(local.classify_many([picture()] * 100))
        assert small == [local.classify([picture()]).results[0][0].label] * 100
        assert not decoders()
        assert answers(local.classify_many([large] * 3)) == [local.classify([large]).results[0][0].label] * 3
        assert decoders()
