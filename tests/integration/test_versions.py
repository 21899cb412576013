"""Which versions of a model a repository serves, by what names, and loading and unloading by request."""

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.engine import instances, model_loader
from service.engine.model_loader import VersionState
from service.engine.repository import Repository
from service.engine.served_version import ServedVersion
from service.engine.version_files import VersionFiles
from service.errors import LoadError, NotFound, Unavailable
from service.model.files import read_file
from service.model.repository_layout import MAX_VERSION
from service.observability.metrics import Metrics
from tests.conftest import put
from tests.integration.test_repository import eventually, truncate, wrong_golden
from tests.integration.test_swaps import ROWS, write_tables
from tests.lack_of_threads import no_more_threads

pytestmark = pytest.mark.usefixtures("settings_taken_at_once")


@pytest.fixture
def models(repository: Path) -> Iterator[Repository]:
    """A repository with version 1 of `digits`, not started; tests scan when they want."""
    opened = Repository(repository, "cpu", Metrics(CollectorRegistry()))
    yield opened
    opened.stop()
    assert opened.served == {}


def policy(repository: Path, text: str) -> None:
    (repository / "digits" / "serving.toml").write_text(text)


def versions(models: Repository) -> list[int]:
    return [served.version for served in models.served.get("digits", ())]


def answers(models: Repository, version: str) -> int:
    served = models.acquire("digits", version)
    models.release(served)
    return served.version


def states(models: Repository) -> dict[tuple[str, int], str]:
    return {(entry.name, entry.version): entry.state for entry in models.index()}


@pytest.mark.parametrize(
    ("text", "served"),
    [
        ("", [4]),
        ('versions = "latest:2"', [4, 2]),
        ('versions = "latest:9"', [4, 2, 1]),
        ('versions = "all"', [4, 2, 1]),
        ('versions = "1, 2"', [2, 1]),
        ("[aliases]\nstable = 1", [4, 1]),
        ('versions = "2"\n[aliases]\nold = 1\nolder = 1', [2, 1]),
    ],
)
def test_a_policy_says_which_of_the_versions_that_load_are_served(
    text: str, served: list[int], models: Repository, repository: Path, model_file: Path
) -> None:
    for version in (2, 3, 4):
        put(model_file, repository, "digits", version)
    truncate(repository / "digits" / "3" / "model.onnx")
    policy(repository, text)
    models.scan()
    assert versions(models) == served


def test_a_version_is_asked_for_by_number_alias_or_as_the_latest(models: Repository, repository: Path, model_file: Path) -> None:
    put(model_file, repository, "digits", 3)
    policy(repository, "[aliases]\nstable = 1\nnext = 3\nlost = 2")
    models.scan()
    models.scanned = True
    assert {name: answers(models, name) for name in ("", "latest", "3", "next", "1", "stable")} == {
        "": 3, "latest": 3, "3": 3, "next": 3, "1": 1, "stable": 1,
    }  # fmt: skip
    assert models.aliases("digits") == {"stable": 1, "next": 3}
    assert models.aliases("nothing") == {}
    for unknown in ("2", "lost", "01", "Stable", "0", "x" * 100):
        with pytest.raises(NotFound, match=r"no version '.{1,64}'; served are: 3, 1, next \(version 3\), stable \(version 1\)"):
            models.acquire("digits", unknown)
    assert models.index() == [
        VersionState("digits", 1, "READY", ""),
        VersionState("digits", 2, "UNAVAILABLE", "serving.toml names it, but there is no model.onnx of it"),
        VersionState("digits", 3, "READY", ""),
    ]


def test_a_missing_version_is_reported_with_the_policy_file_that_names_it(repository: Path, tmp_path: Path) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "digits.toml").write_text('versions = "1,2"')
    models = Repository(repository, "cpu", Metrics(CollectorRegistry()), policies=policies)
    models.scan()
    assert models.index()[1].reason == "digits.toml names it, but there is no model.onnx of it"
    models.stop()


def test_a_canary_moves_nobody_and_moving_everybody_loads_nothing(models: Repository, repository: Path, model_file: Path) -> None:
    put(model_file, repository, "digits", 2)
    text = 'versions = "1"\n{}\n[aliases]\nstable = 1\n'
    policy(repository, text.format(""))
    models.scan()
    assert versions(models) == [1]
    assert states(models) == {("digits", 1): "READY", ("digits", 2): "IDLE"}
    policy(repository, text.format("") + "canary = 2")
    models.scan()
    assert versions(models) == [2, 1]
    assert [answers(models, name) for name in ("", "latest", "stable", "canary")] == [1, 1, 1, 2]
    before = models.served["digits"]
    policy(repository, text.format('default = "canary"') + "canary = 2")
    models.scan()
    assert [answers(models, name) for name in ("", "latest", "stable", "canary")] == [2, 1, 1, 2]
    policy(repository, text.format("traffic = {stable = 3, canary = 1}") + "canary = 2")
    models.scan()
    assert models.routing("digits").shares() == {1: 0.75, 2: 0.25}
    assert models.served["digits"] == before


def test_an_alias_of_a_version_that_comes_is_to_be_asked_for_again(
    models: Repository, repository: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.scan()
    models.scanned = True
    coming = put(model_file, repository, "digits", 2)
    asked = []
    load = instances.load_instances

    def ask_first(*arguments: Any) -> Any:
        for name in ("canary", "2"):
            with pytest.raises(Unavailable, match="version 2 of model 'digits' is still being loaded"):
                models.acquire("digits", name)
        asked.append(answers(models, ""))
        return load(*arguments)

    monkeypatch.setattr(model_loader, "load_instances", ask_first)
    policy(repository, 'versions = "1"\n[aliases]\ncanary = 2\nnever = 3')
    models.scan()
    assert asked == [1]
    assert answers(models, "canary") == 2
    coming.unlink()
    models.scan()
    for name in ("canary", "never"):
        with pytest.raises(NotFound, match=f"no version '{name}'"):
            models.acquire("digits", name)


def test_moving_an_alias_loads_nothing_again(models: Repository, repository: Path, model_file: Path) -> None:
    put(model_file, repository, "digits", 2)
    policy(repository, 'versions = "all"\n[aliases]\nstable = 1')
    models.scan()
    before = models.served["digits"]
    policy(repository, 'versions = "1,2"\n[aliases]\nstable = 2')
    models.scan()
    assert answers(models, "stable") == 2
    assert models.served["digits"] == before
    policy(repository, 'versions = "all"\nmax_batch_size = 4')
    models.scan()
    assert not set(models.served["digits"]) & set(before)
    assert models.aliases("digits") == {}


def test_what_is_served_stays_while_what_a_policy_asks_for_cannot_be_had(
    models: Repository, repository: Path, model_file: Path
) -> None:
    models.scan()
    policy(repository, 'versions = "7"')
    models.scan()
    assert versions(models) == [1]
    assert states(models) == {("digits", 7): "UNAVAILABLE", ("digits", 1): "READY"}
    wrong_golden(put(model_file, repository, "digits", 7))
    models.scan()
    assert versions(models) == [1]
    assert "golden sample 0" in models.index()[-1].reason
    policy(repository, 'versions = "seven"')
    models.scan()
    assert versions(models) == [1]
    assert 'serving.toml: versions: accepted are "latest:N", "all"' in models.index()[-1].reason
    policy(repository, "")
    models.scan()
    assert versions(models) == [1]
    shutil.rmtree(repository / "digits" / "7")
    models.scan()
    assert models.index() == [VersionState("digits", 1, "READY", "")]


def test_a_change_for_the_worse_is_told_beside_what_still_serves(models: Repository, repository: Path) -> None:
    models.scan()
    truncate(repository / "digits" / "1" / "model.onnx")
    models.scan()
    [entry] = models.index()
    assert entry.state == "READY"
    assert "ONNX Runtime cannot load the file" in entry.reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('versions = "latest:0"', 'versions: accepted are "latest:N"'),
        ('versions = "3,"', "versions: accepted are"),
        ("versions = 3", "versions: Input should be a valid string"),
        ("[aliases]\nlatest = 1", "aliases: invalid alias 'latest'"),
        ("[aliases]\n1a = 1", "aliases: invalid alias '1a'"),
        ("[aliases]\nstable = 0", "aliases.stable: Input should be greater than or equal to 1"),
        ('[aliases]\nstable = "1"', "aliases.stable: Input should be a valid integer"),
    ],
)
def test_a_policy_of_versions_that_cannot_be_says_what_is_accepted(
    text: str, message: str, models: Repository, repository: Path
) -> None:
    policy(repository, text)
    models.scan()
    [entry] = models.index()
    assert entry.state == "UNAVAILABLE"
    assert f"digits/serving.toml: {message}" in entry.reason


def test_an_unloaded_model_stays_so_until_it_is_loaded(models: Repository, repository: Path, model_file: Path) -> None:
    models.scan()
    models.scanned = True
    models.unload("digits")
    models.unload("digits")
    put(model_file, repository, "digits", 2)
    models.scan()
    assert models.served == {}
    assert models.index() == [VersionState("digits", 1, "UNAVAILABLE", "unloaded")]
    with pytest.raises(NotFound, match="'digits' has been unloaded"):
        models.acquire("digits", "")
    models.load("digits")
    assert versions(models) == [2]
    before = models.served["digits"]
    models.load("digits")
    assert models.served["digits"] == before
    for ask in (models.load, models.unload):
        with pytest.raises(NotFound, match=r"no model named '\.\./digits' is in the repository"):
            ask("../digits")


def test_loading_by_request_says_what_is_wrong_and_tries_again_what_failed(
    models: Repository, repository: Path, model_file: Path
) -> None:
    models.scan()
    path = put(model_file, repository, "digits", 2)
    truncate(path)
    models.scan()
    with pytest.raises(LoadError, match="'digits' could not be loaded: version 2: ONNX Runtime cannot load the file"):
        models.load("digits")
    assert versions(models) == [1]
    path.write_bytes(model_file.read_bytes())
    models.load("digits")
    assert versions(models) == [2]
    (repository / "empty").mkdir()
    with pytest.raises(LoadError, match="'empty' could not be loaded: it has no version"):
        models.load("empty")


def test_what_is_misplaced_is_logged_once_and_said_to_who_asks_for_it(
    models: Repository, repository: Path, model_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def logged() -> list[str]:
        return [record.message for record in caplog.records if record.message.startswith("repository: ")]

    models.scan()
    assert logged() == []
    for place in ("digits/v2", "my model/1", "flat", "group/digits/1", "."):
        (repository / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(model_file, repository / place / ("net.onnx" if place == "." else "model.onnx"))
    (repository / "digits" / "5").mkdir()
    models.scan()
    models.scan()
    assert [line.split(" is not served: ")[0] for line in logged()] == [
        f"repository: {place}"
        for place in ("digits/5", "digits/v2/model.onnx", "flat/model.onnx", "group/digits/1/model.onnx", "my model/1/model.onnx",
                      "net.onnx")
    ]  # fmt: skip
    with pytest.raises(LoadError, match=r"it has no version; flat/model.onnx is not served: expected is <model>/<version>/model.o"):
        models.load("flat")
    for name, message in {
        "my model": "a name starts with a letter",
        "net.onnx": "expected is <model>/<version>/model.onnx",
    }.items():
        with pytest.raises(NotFound, match=f"no model named '{name}' is in the repository; {name}.* is not served: .*{message}"):
            models.load(name)
    models.load("digits")
    assert versions(models) == [1], "what is beside a version does it no harm"
    shutil.rmtree(repository / "digits" / "v2")
    models.scan()
    (repository / "digits" / "v2").mkdir()
    shutil.copy(model_file, repository / "digits" / "v2" / "other.onnx")
    models.scan()
    assert logged()[6:] == [logged()[-1]]
    assert "digits/v2/other.onnx is not served: expected is" in logged()[-1]


def test_nobody_waits_for_the_search_for_what_is_misplaced(models: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    models.scan()
    models.scanned = True
    searching, go_on = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> list[tuple[Path, str]]:
        searching.set()
        assert go_on.wait(60)
        return []

    monkeypatch.setattr("service.engine.misplaced_files.misplaced", hang)
    with ThreadPoolExecutor() as pool:
        try:
            scan = pool.submit(models.scan)
            assert searching.wait(30)
            asked = pool.submit(models.acquire, "none", "")
            with pytest.raises(NotFound, match="no model named 'none'; served are: digits"):
                asked.result(30)
            for change in (models.unload, models.load):
                pool.submit(change, "digits").result(30)
            assert [state.state for state in pool.submit(models.index).result(30)] == ["READY"]
            pool.submit(models.scan).result(30)
            assert not scan.done()
        finally:
            go_on.set()


@pytest.mark.parametrize("when", ["before it is published", "while it is published"])
def test_what_was_loaded_in_a_scan_that_failed_is_closed(
    models: Repository, repository: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    models.scan()
    put(model_file, repository, "digits", 2)
    closed: list[int] = []
    close = ServedVersion.close

    def note(served: ServedVersion) -> None:
        closed.append(served.version)
        close(served)

    def fail(*_: object) -> None:
        raise OSError(36, "File name too long")

    monkeypatch.setattr(ServedVersion, "close", note)
    with monkeypatch.context() as broken:
        if when == "before it is published":
            broken.setattr(VersionFiles, "forget_others", fail)
        else:
            broken.setattr(models._registry, "_metrics", None)
        models.scan()
        assert closed == [2]
        assert versions(models) == [1]
    models.scan()
    assert versions(models) == [2]


@pytest.mark.parametrize("version", [1764442800, MAX_VERSION])
def test_a_version_may_be_any_int64(version: int, models: Repository, repository: Path, model_file: Path) -> None:
    put(model_file, repository, "digits", version)
    policy(repository, f"versions = '1,{version}'\n[aliases]\nnewest = {version}")
    models.scan()
    assert versions(models) == [version, 1]
    assert answers(models, str(version)) == answers(models, "newest") == answers(models, "latest") == version


def test_a_request_in_hand_keeps_an_unloaded_model_until_it_is_done(models: Repository) -> None:
    models.scan()
    served = models.acquire("digits", "")
    models.unload("digits")
    assert not models.wait_until_idle(0)
    models.release(served)
    assert models.wait_until_idle(0)
    assert models._registry._active == ()


def test_a_version_that_no_thread_could_close_is_closed_later(models: Repository, repository: Path, model_file: Path) -> None:
    models.scan()
    served = models.acquire("digits", "")
    put(model_file, repository, "digits", 2)
    models.scan()
    with no_more_threads("close-") as refused:
        models.release(served)
        models.scan()
    assert refused == ["close-digits"] * 2
    assert served.batcher._instances
    models.scan()
    eventually(lambda: not served.batcher._instances)
    assert versions(models) == [2]
    assert models._registry._unclosed == []


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.version_files.SETTLE_SECONDS", 1.0)


def settled(models: Repository) -> Repository:
    """Scans until no version waits."""
    eventually(lambda: not models.scan())
    return models


def value_of(models: Repository) -> float:
    """What the served version of `tables` has in the file `first`, at its end."""
    served = models.acquire("tables", "")
    scores = served.model.predict(np.full((1, 1), ROWS - 1, np.float32))[0]
    models.release(served)
    return float(scores[0, 1])


@pytest.mark.usefixtures("short_wait")
def test_a_version_is_loaded_once_its_weights_are_there(
    models: Repository, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = repository / "tables" / "1"
    write_tables(folder, 7, ("model.onnx", "second"))
    assert models.scan(), "it waits"
    models.scanned = True
    assert models.index()[-1] == VersionState("tables", 1, "LOADING", "its files are still being written")
    with pytest.raises(Unavailable, match="model 'tables' is not loaded yet: its files are still being written"):
        models.acquire("tables", "")
    settled(models)
    assert models.index()[-1] == VersionState("tables", 1, "UNAVAILABLE", "weights file 'first' is missing")
    write_tables(folder, 7, ("first",))
    assert models.scan()
    assert value_of(settled(models)) == 7
    assert models.index()[-1] == VersionState("tables", 1, "READY", "")
    assert [record.message for record in caplog.records if "still being written" in record.message] == [
        "model tables version 1: its files are still being written; it is loaded once they are the same for 2 s"
    ] * 2, "once each time"


@pytest.mark.usefixtures("short_wait")
def test_a_file_that_is_filled_after_it_got_its_size_is_not_served_as_zeros(models: Repository, repository: Path) -> None:
    folder = repository / "tables" / "1"
    write_tables(folder, 3)
    content = (folder / "first").read_bytes()
    (folder / "first").write_bytes(bytes(len(content)))
    for at in range(0, len(content), len(content) // 8):
        assert models.scan()
        assert "tables" not in models.served
        with (folder / "first").open("r+b") as file:
            file.seek(at)
            file.write(content[at : at + len(content) // 8])
    assert value_of(settled(models)) == 3


@pytest.mark.usefixtures("short_wait")
def test_a_file_that_grows_while_it_is_read_is_read_again_once_it_is_whole(
    models: Repository, repository: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    models.scan()
    path, content = repository / "digits" / "2" / "model.onnx", model_file.read_bytes()
    path.parent.mkdir()
    path.write_bytes(content[:1000])

    def read_while_written(file: Path, max_bytes: int | None = None) -> bytes:
        found = read_file(file, max_bytes)
        if file == path:
            file.write_bytes(content[: len(found) + 100])
        return found

    with monkeypatch.context() as patch:
        patch.setattr("service.model.model_files.read_file", read_while_written)
        assert models.scan()
        assert models.scan()
        assert versions(models) == [1]
        assert models.index()[-1] == VersionState("digits", 2, "LOADING", "its files are still being written")
        with pytest.raises(LoadError, match="'digits' could not be loaded: version 2: its files are still being written"):
            models.load("digits")
    path.write_bytes(content)
    settled(models)
    assert versions(models) == [2]
    assert caplog.text.count("model digits version 2: loading") == 3, "not at each scan"


@pytest.mark.usefixtures("short_wait")
def test_weights_that_change_are_loaded_again_and_until_then_those_in_memory_serve(models: Repository, repository: Path) -> None:
    folder = repository / "tables" / "1"
    write_tables(folder, 1)
    assert value_of(settled(models)) == 1
    before = models.served["tables"][0].model.digest
    os.truncate(folder / "first", 5)
    settled(models)
    assert value_of(models) == 1
    assert models.index()[-1] == VersionState("tables", 1, "READY", "weights file 'first' has 5 bytes, the graph needs 4194304")
    write_tables(folder, 2, ("first",))
    assert models.scan()
    assert value_of(models) == 1
    assert value_of(settled(models)) == 2
    assert models.served["tables"][0].model.digest != before
    (folder / "first").unlink()
    settled(models)
    assert value_of(models) == 2
    assert models.index()[-1].reason == "weights file 'first' is missing"


def test_old_files_and_a_request_to_load_do_not_wait(models: Repository, repository: Path) -> None:
    folder = repository / "tables" / "1"
    write_tables(folder, 1)
    for file in folder.iterdir():
        os.utime(file, (0, 0))  # as `cp --preserve` and archives leave them
    assert not models.scan()
    assert value_of(models) == 1
    write_tables(folder, 2)
    assert models.scan()
    models.load("tables")
    assert value_of(models) == 2
    shutil.rmtree(repository / "tables")
    assert not models.scan()
    assert ("tables", 1) not in states(models)
