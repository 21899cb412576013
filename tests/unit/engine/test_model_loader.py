"""What could not be loaded for a passing reason is loaded again, though nothing has changed."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.engine import model_loader
from service.engine.repository import Repository
from service.engine.trial import Approval, Trial
from service.errors import LoadError, PassingFailure
from service.model.model_files import Expected, read_model
from service.observability.metrics import Metrics
from tests.unit.model.graphs import FLOAT, PRODUCT, write

pytestmark = pytest.mark.usefixtures("settings_taken_at_once")


@pytest.mark.parametrize("patience_seconds", [0.0, 60.0])
@pytest.mark.parametrize("error", [LoadError, PassingFailure, MemoryError])
def test_a_passing_failure_is_not_the_last_word(
    patience_seconds: float,
    error: type[Exception],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = write(tmp_path / "m" / "1" / "model.onnx", [PRODUCT], {"product": FLOAT})
    outcomes: list[Exception | None] = [error("short of it"), None]
    tried = []

    def try_version(trial: Trial) -> Approval:
        tried.append(trial)
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        content = read_model(path)
        return Approval(Expected(content.digest, content.graph_digest, content.size_bytes), 4)

    models = Repository(tmp_path, "cpu", Metrics(CollectorRegistry()), try_version=try_version)
    monkeypatch.setattr(model_loader, "PATIENCE_SECONDS", patience_seconds)
    for _ in range(4):
        models._loader.scan()
    loaded = patience_seconds == 0 and error is not LoadError
    assert len(tried) == (2 if loaded else 1)
    assert ("m" in models.served) == loaded
    assert caplog.text.count("version 1 is not served") == 1
    models.stop()


def test_a_config_that_names_a_file_that_is_not_there_takes_nothing_away(tmp_path: Path) -> None:
    path = write(tmp_path / "m" / "1" / "net.onnx", [PRODUCT], {"product": FLOAT})
    config = tmp_path / "m" / "config.pbtxt"
    config.write_text('default_model_filename: "net.onnx"')
    models = Repository(tmp_path, "cpu", Metrics(CollectorRegistry()))
    try:
        models.load("m")
        [served] = models.served["m"]
        config.write_text('default_model_filename: "ent.onnx"')
        models._loader.scan()
        assert models.served["m"] == (served,)
        [entry] = models.index()
        assert (entry.state, entry.reason) == (
            "READY",
            "there is no ent.onnx in its folder, which config.pbtxt names as the model file",
        )
        path.unlink()
        config.write_text('default_model_filename: "net.onnx"')
        models._loader.scan()
        assert "m" not in models.served, "deleting the file that is served takes it out of service"
    finally:
        models.stop()
