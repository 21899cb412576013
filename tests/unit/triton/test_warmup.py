"""`model_warmup` of a `config.pbtxt`."""

from pathlib import Path

import numpy as np
import pytest

from service.errors import InvalidModel, LoadError
from service.model.inference import Model
from service.model.loading import load_model
from service.triton.model_config import WarmupSample
from service.triton.warmup import MAX_ITEMS, warm_up, warmup_files
from tests.unit.model.graphs import FLOAT, PRODUCT, node, write

SAMPLE = WarmupSample("w", "x", "TYPE_FP32", (4,), 1, 1, "zero_data")


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Model, list[np.ndarray]]:
    """A model that takes float32[N,4], and the batches that it has been run on since it was loaded."""
    model = load_model(write(tmp_path / "model.onnx", [PRODUCT], {"product": FLOAT}), "cpu", 1)
    seen: list[np.ndarray] = []
    predict = model.predict

    def note(images: np.ndarray) -> object:
        seen.append(images)
        return predict(images)

    monkeypatch.setattr(model, "predict", note)
    return model, seen


def test_each_sample_is_run_as_often_and_with_as_many_items_as_it_says(
    batches: tuple[Model, list[np.ndarray]], tmp_path: Path
) -> None:
    model, seen = batches
    (tmp_path / "warmup").mkdir()
    raw = np.arange(4, dtype=np.float32)
    (tmp_path / "warmup" / "raw").write_bytes(raw.tobytes())
    samples = (
        SAMPLE._replace(items=3, runs=2), SAMPLE._replace(kind="random_data", dims=(1, 4)),
        SAMPLE._replace(kind="input_data_file", file="raw", items=2),
    )  # fmt: skip
    warm_up(model, tmp_path, samples)
    assert [batch.shape for batch in seen] == [(3, 4), (3, 4), (1, 4), (2, 4)]
    assert not seen[0].any()
    assert seen[2].any()
    np.testing.assert_array_equal(seen[3], [raw, raw])
    assert warmup_files(tmp_path, samples) == (tmp_path / "warmup" / "raw",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"input": "y"}, "the graph has no input 'y'; it takes 'x'"),
        ({"data_type": "TYPE_UINT8"}, r"it is TYPE_UINT8 \[4\]; an item of the graph is float32 4"),
        ({"dims": (3,)}, r"it is TYPE_FP32 \[3\]; an item of the graph is float32 4"),
        ({"dims": (-1,)}, r"it is TYPE_FP32 \[-1\]; an item of the graph is float32 4"),
        ({"dims": ()}, r"it is TYPE_FP32 \[\]; an item of the graph is float32 4"),
        ({"items": MAX_ITEMS + 1}, "it has 4097 items; at most 4096 are accepted"),
        ({"dims": (2**60, 4)}, "it has 1152921504606846976 items; at most 4096 are accepted"),
        ({"kind": "input_data_file", "file": "none"}, "warmup/none: No such file or directory"),
        ({"kind": "input_data_file", "file": "short"}, "warmup/short has 4 bytes; float32 4 has 16"),
        ({"kind": "input_data_file", "file": "long"}, "warmup/long: larger than 16 bytes"),
        ({"kind": "input_data_file", "file": "folder"}, "warmup/folder: not a regular file"),
    ],
)
def test_a_sample_that_the_model_does_not_take_is_said(
    changes: dict[str, object], reason: str, batches: tuple[Model, list[np.ndarray]], tmp_path: Path
) -> None:
    (tmp_path / "warmup" / "folder").mkdir(parents=True)
    (tmp_path / "warmup" / "short").write_bytes(bytes(4))
    (tmp_path / "warmup" / "long").write_bytes(bytes(17))
    with pytest.raises(InvalidModel, match=f"^config.pbtxt: model_warmup 'w': {reason}"):
        warm_up(batches[0], tmp_path, (SAMPLE._replace(**changes),))  # type: ignore[arg-type]
    assert not batches[1]


def test_a_model_that_fails_on_a_sample_is_not_served(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "row", to=7), node("ReduceMax", "row axes", "rows", keepdims=0), node("Gather", "table rows", "y")]
    table = np.ones((1, 3), np.float32)
    path = write(tmp_path / "model.onnx", nodes, {"y": FLOAT}, {"axes": np.array([1]), "table": table})
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "sevens").write_bytes(np.full(4, 7, np.float32).tobytes())
    with pytest.raises(LoadError, match=r"^config.pbtxt: model_warmup 'w': the model fails: .*indices"):
        warm_up(load_model(path, "cpu", 1), tmp_path, (SAMPLE._replace(kind="input_data_file", file="sevens"),))
