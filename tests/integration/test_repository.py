"""What a running server does when its repository changes, or holds what cannot be served."""

import base64
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import pytest
from prometheus_client import CollectorRegistry

from export.data.datasets import Dataset
from service.client import CallFailed, Client
from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.query import Item, Query
from service.engine.repository import Repository
from service.errors import RequestError
from service.model.contract import METADATA_KEY
from service.model.loading import load_model
from service.observability.metrics import Metrics
from service.server import Server
from tests.conftest import Serve, Spawn, convoy, put
from tests.integration.test_edges import samples

pytestmark = pytest.mark.usefixtures("settings_taken_at_once")


@pytest.fixture
def transport_name() -> str:
    """How models are found and loaded is nothing to a transport: once is enough."""
    return "fast"


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def change_contract(path: Path, change: Callable[[dict], None]) -> None:
    """Rewrites the contract inside a model file."""
    model = onnx.load(path)
    [entry] = model.metadata_props
    contract = json.loads(entry.value)
    change(contract)
    entry.value = json.dumps(contract)
    onnx.save(model, path)


def version_of(server: Server, digits: Dataset) -> str:
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        return client.classify([digits.test.encoded(0)], "digits").version


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100_000])


def forget_contract(path: Path) -> None:
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)


def wrong_golden(path: Path) -> None:
    change_contract(path, lambda contract: contract["golden"][0]["probabilities"][0].reverse())


BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "truncated": (truncate, "invalid", "ONNX Runtime cannot load the file"),
    "empty": (lambda path: path.write_bytes(b""), "invalid", "ONNX Runtime cannot load the file"),
    "no contract": (forget_contract, "invalid", f"no contract: the graph is one of Convoy's, but the file has no {METADATA_KEY!r}"),
    "contract is not JSON": (lambda path: change_raw(path, "nonsense"), "invalid", "contract: the whole: Invalid JSON"),
    "unknown schema": (lambda path: change_contract(path, lambda c: c.update(schema=3)), "invalid", "contract: schema: "),
    "label missing": (
        lambda path: change_contract(path, lambda c: c["heads"][0]["labels"].pop()), "invalid", "[10] probabilities for [9]"),
    "other input size": (
        lambda path: change_contract(path, lambda c: c["input"].update(height=32)), "invalid", "the contract says [N, 32, 28, 1]"),
    "wrong golden answers": (wrong_golden, "golden_mismatch", "golden sample 0 mismatch on cpu: largest difference"),
    "golden is no image": (
        lambda path: change_contract(path, lambda c: c["golden"][0].update(image=base64.b64encode(b"no").decode())),
        "invalid", "golden sample 0: not an image"),
}  # fmt: skip


def change_raw(path: Path, text: str) -> None:
    model = onnx.load(path)
    model.metadata_props[0].value = text
    onnx.save(model, path)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_version_never_takes_the_place_of_a_working_one(
    name: str, repository: Path, model_file: Path, serve: Serve, digits: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    """At start the version below is served; a bad model beside good ones changes nothing for them."""
    spoil, outcome, message = BROKEN[name]
    spoil(put(model_file, repository, "digits", 2))
    spoil(put(model_file, repository, "other", 1))
    server = serve(repository)
    assert version_of(server, digits) == "1"
    assert list(server._repository.served) == ["digits"]
    found = samples(server)
    assert found["convoy_model_loads_total", "digits", outcome] == 1
    assert found["convoy_model_loads_total", "other", outcome] == 1
    for version in ("digits version 2", "other version 1"):
        assert re.search(f"model {version} is not served: .*{re.escape(message)}", caplog.text)


def test_new_versions_are_swapped_in_under_load_and_bad_ones_are_not(
    repository: Path, model_file: Path, serve: Serve, digits: Dataset
) -> None:
    server = serve(repository)
    stop = threading.Event()
    versions: list[str] = []
    failures: list[CallFailed] = []

    def load() -> None:
        with Client(f"127.0.0.1:{server.grpc_port}") as client:
            while not stop.wait(0.002):
                try:
                    versions.append(client.classify([digits.test.encoded(0)], "digits").version)
                except CallFailed as error:
                    failures.append(error)

    clients = [threading.Thread(target=load) for _ in range(3)]
    for client in clients:
        client.start()
    put(model_file, repository, "digits", 2)
    eventually(lambda: versions[-1:] == ["2"])
    truncate(put(model_file, repository, "digits", 3))
    eventually(lambda: samples(server).get(("convoy_model_loads_total", "digits", "invalid")) == 1)
    put(model_file, repository, "digits", 4)
    eventually(lambda: versions[-1:] == ["4"])
    stop.set()
    for client in clients:
        client.join()
    assert failures == []
    assert set(versions) == {"1", "2", "4"}
    info = [key for key in samples(server) if key[0] == "convoy_model_info"]
    assert len(info) == 1
    assert "4" in info[0]


def test_a_half_copied_version_is_served_once_it_is_whole(
    repository: Path, model_file: Path, serve: Serve, digits: Dataset
) -> None:
    server = serve(repository)
    content = model_file.read_bytes()
    folder = repository / "digits" / "2"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(content[: len(content) // 2])
    eventually(lambda: samples(server).get(("convoy_model_loads_total", "digits", "invalid")) == 1)
    assert version_of(server, digits) == "1"
    (folder / "model.onnx").write_bytes(content)
    eventually(lambda: version_of(server, digits) == "2")


def test_a_model_that_is_removed_is_no_longer_served(repository: Path, model_file: Path, serve: Serve, digits: Dataset) -> None:
    put(model_file, repository, "twin", 1)
    server = serve(repository)
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        assert client.classify([digits.test.encoded(0)], "twin").model == "twin"
        shutil.rmtree(repository / "twin")
        eventually(lambda: "twin" not in server._repository.served)
        assert client.classify([digits.test.encoded(0)], "digits").model == "digits"
    assert not any("twin" in key and key[0] in ("convoy_model_info", "convoy_queue_items") for key in samples(server))


def test_a_bad_policy_is_a_load_failure_that_names_the_key(
    repository: Path, model_file: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    put(model_file, repository, "other", 1)
    (repository / "other" / "serving.toml").write_text("max_bach_size = 4\n")
    server = serve(repository)
    assert list(server._repository.served) == ["digits"]
    assert "other/serving.toml: max_bach_size: unknown key; the keys are max_batch_size" in caplog.text


def test_a_version_overwritten_with_a_broken_file_serves_on_from_memory(
    repository: Path, model_file: Path, serve: Serve, digits: Dataset
) -> None:
    path = put(model_file, repository, "digits", 2)
    server = serve(repository)
    truncate(path)
    eventually(lambda: samples(server).get(("convoy_model_loads_total", "digits", "invalid")) == 1)
    server._repository.scan()
    assert version_of(server, digits) == "2"


def test_a_repository_deleted_and_made_again_is_watched_on(
    repository: Path, model_file: Path, serve: Serve, digits: Dataset
) -> None:
    server = serve(repository)
    shutil.rmtree(repository)
    time.sleep(1.5)
    assert version_of(server, digits) == "1", "a folder that is away, such as a mount, takes nothing with it"
    put(model_file, repository, "digits", 5)
    eventually(lambda: version_of(server, digits) == "5")


def test_a_request_queued_while_its_model_is_swapped_is_answered(repository: Path, model_file: Path, digits: Dataset) -> None:
    """No transport here: its quiet moment comes after the swap, which is what is tested."""
    metrics = Metrics(CollectorRegistry())
    models = Repository(repository, "cpu", metrics)
    models.start()
    classifier = Classifier(models, metrics)
    answers: list[Answer | RequestError] = []
    pixels = digits.test.pixels[0].tobytes()
    classifier.classify(Query("digits", [Item(pixels, False)]), answers.append)
    put(model_file, repository, "digits", 2)
    models.scan()
    assert answers == []
    classifier.pump()
    [answer] = answers
    assert isinstance(answer, Answer)
    assert answer.served.version == 1
    assert models.wait_until_idle(1)
    classifier.close()
    models.stop()


def test_a_version_overwritten_with_other_labels_is_counted_by_them(
    repository: Path, model_file: Path, serve: Serve, digits: Dataset
) -> None:
    server = serve(repository)
    names = [f"digit {label}" for label in digits.labels]
    change_contract(repository / "digits" / "1" / "model.onnx", lambda contract: contract["heads"][0].update(labels=names))
    eventually(lambda: server._repository.served["digits"][0].model.labels == tuple(names))
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        found = client.classify([digits.test.encoded(0)], "digits").results[0][0].label
    assert found in names
    assert samples(server)["convoy_predictions_total", found, "digits", "1"] == 1


def test_a_policy_that_changes_is_taken_up(repository: Path, serve: Serve) -> None:
    server = serve(repository)
    assert server._repository.served["digits"][0].policy.max_batch_size == 64
    (repository / "digits" / "serving.toml").write_text("max_batch_size = 4\n")
    eventually(lambda: server._repository.served["digits"][0].policy.max_batch_size == 4)


def test_a_policy_of_several_instances_and_a_delay_is_kept(repository: Path, serve: Serve, digits: Dataset) -> None:
    (repository / "digits" / "serving.toml").write_text("instances = 2\nmax_batch_size = 4\nmax_queue_delay_seconds = 20\n")
    server = serve(repository)
    [served] = server._repository.served["digits"]
    assert len(served.batcher._instances) == 2
    batch = served.batcher.max_batch_items  # at most 4: what warm-up found worthwhile
    with Client(f"127.0.0.1:{server.grpc_port}") as client, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: client.classify([digits.test.encoded(index)], "digits").results[0][0].label, range(4)))
    loaded = load_model(repository / "digits" / "1" / "model.onnx", "cpu", 1)
    assert found == [loaded.labels[row.argmax()] for row in loaded.probabilities(digits.test.pixels[:4])]
    assert samples(server)["convoy_batch_items_count", "digits", "1"] == 4 // batch, "they wait for each other"
    assert samples(server)["convoy_ort_threads", "digits"] == 2 * served.model.threads


def test_a_folder_that_cannot_be_watched_is_scanned(
    repository: Path, model_file: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("Too many open files")

    monkeypatch.setattr("watchfiles.watch", refuse)
    monkeypatch.setattr("service.engine.watcher.RESCAN_MILLISECONDS", 50)
    server = serve(repository)
    put(model_file, repository, "digits", 2)
    eventually(lambda: [each.version for each in server._repository.served["digits"]] == [2])
    assert [record.message for record in caplog.records].count(
        "repository: cannot watch for changes, scanning every 0.05 s: Too many open files"
    ) == 1, "once, not each time"


def test_what_cannot_be_loaded_is_a_metric_for_as_long_as_it_is_there(repository: Path, model_file: Path) -> None:
    registry = CollectorRegistry()
    truncate(put(model_file, repository, "digits", 2))
    models = Repository(repository, "cpu", Metrics(registry))
    failed = {"model": "digits", "version": "2", "outcome": "invalid"}
    models.scan()
    assert registry.get_sample_value("convoy_model_load_failed", failed) == 1
    models.scan()
    assert registry.get_sample_value("convoy_model_load_failed", failed) == 1
    (repository / "digits" / "2" / "model.onnx").write_bytes(model_file.read_bytes())
    models.scan()
    assert registry.get_sample_value("convoy_model_load_failed", failed) is None
    truncate(put(model_file, repository, "digits", 3))
    models.scan()
    (repository / "digits" / "serving.toml").write_text("nonsense")
    shutil.rmtree(repository / "digits" / "3")
    models.scan()
    assert registry.get_sample_value("convoy_model_load_failed", failed) == 1, "of the policy, by the highest version"
    assert registry.get_sample_value("convoy_model_load_failed", failed | {"version": "3"}) is None, "it is gone"
    models.stop()


@pytest.mark.parametrize(
    ("folder", "environment"),
    [
        (b"caf\xe9", {"LC_ALL": "C.UTF-8"}),
        ("größe😀".encode(), {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ],
)
def test_a_path_in_any_encoding_is_served_and_logged(
    folder: bytes, environment: dict[str, str], tmp_path: Path, model_file: Path, spawn: Spawn, digits: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    place = tmp_path / os.fsdecode(folder)
    put(model_file, place / "models", "digits", 1)
    (place / "models" / "digits" / os.fsdecode(folder)).mkdir()
    shutil.copy(model_file, place / "models" / "digits" / os.fsdecode(folder))
    (place / "policies").mkdir()
    (place / "policies" / "digits.toml").write_text("max_batch_size = 4")
    (place / "digit.png").write_bytes(digits.test.encoded(0))
    server = spawn(place / "models", "--policies", str(place / "policies"), "--log-format", "json")
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        label = client.classify([place / "digit.png"], "digits").results[0][0].label
    shown = convoy("classify", place / "digit.png", "--model", "digits", "--server", f"127.0.0.1:{server.grpc_port}", "--json")
    assert json.loads(shown.stdout)["predictions"][0]["label"] == label, shown.stderr
    assert server.terminate() == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert any("model.onnx is not served" in line["message"] for line in lines), "with its path"
    assert all(line["message"].encode() for line in lines), "without lone surrogates, which other programs refuse"
    assert not any("exception" in line for line in lines)
    for refused in (convoy("serve", place / "none"), convoy("inspect", place / "none.onnx")):
        assert (refused.returncode, refused.stderr.count("\n"), refused.stderr[:8]) == (2, 1, "convoy: ")


def test_what_cannot_be_looked_at_harms_nobody(repository: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> list[tuple[Path, str]]:
        raise PermissionError(13, "Permission denied", "other/1/model.onnx")

    monkeypatch.setattr("service.engine.misplaced_files.misplaced", refuse)
    assert [each.version for each in serve(repository)._repository.served["digits"]] == [1]
