"""The calibration error, by hand, and the temperature, on classes drawn from known probabilities."""

import numpy as np
import pytest
import torch

from export.data.sample_size import ENOUGH_TO_CHOOSE
from export.evaluation import calibration
from export.evaluation.scores import Scores


def test_calibration_error_by_hand() -> None:
    """Bins of a quarter: three answers of confidence 0.875, two of them right, and two of 0.75, both right."""
    probabilities = np.array([[0.875, 0.125], [0.875, 0.125], [0.125, 0.875], [0.25, 0.75], [0.75, 0.25]], np.float32)
    found = calibration.reliability(probabilities, np.array([0, 0, 0, 1, 0]), bins=4)
    assert found.items.tolist() == [0, 0, 2, 3], "a bin holds its upper edge: 0.75 is in the third"
    assert found.accuracy.tolist() == pytest.approx([0, 0, 1, 2 / 3])
    assert found.confidence.tolist() == pytest.approx([0, 0, 0.75, 0.875])
    assert found.error == pytest.approx((3 * (0.875 - 2 / 3) + 2 * (1 - 0.75)) / 5)


def test_calibration_error_of_certain_answers() -> None:
    certain = np.eye(4, dtype=np.float32)
    assert calibration.reliability(certain, np.arange(4)).error == 0.0
    assert calibration.reliability(certain, np.array([1, 2, 3, 0])).error == 1.0


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_recovers_a_known_scale(scale: float) -> None:
    """Classes drawn from softmax(z): of `scale` * z the temperature is `scale`."""
    random = np.random.default_rng(0)
    z = random.normal(size=(20_000, 5)) * 2
    probabilities = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    labels = (random.random((len(z), 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    logits = (scale * z).astype(np.float32)
    found = calibration.fit_temperature(logits, labels)
    assert found == pytest.approx(scale, rel=0.03)
    served = Scores(tuple("abcde"), labels, torch.from_numpy(logits / found).softmax(1).numpy(), found)
    assert served.reliability.error < 0.015
    if scale != 1.0:
        assert served.reliability_before.error > 0.1


def test_a_temperature_that_the_data_do_not_determine_is_one() -> None:
    labels = np.array([0, 1, 2, 1])
    every_one_right = 10 * np.eye(3, dtype=np.float32)[labels]
    assert calibration.fit_temperature(every_one_right, labels) == 1.0
    assert calibration.fit_temperature(-every_one_right, labels) == 1.0, "worse than chance"
    assert calibration.fit_temperature(np.full((4, 3), 7.0, np.float32), labels) == 1.0, "the same for every picture and label"
    assert calibration.fit_temperature(1e30 * every_one_right, labels) == 1.0


def test_a_temperature_is_fitted_on_enough_pictures_and_only_where_it_helps_others() -> None:
    random = np.random.default_rng(0)
    logits = 4 * random.normal(size=(400, 3)).astype(np.float32)
    labels = np.where(random.random(400) < 0.5, logits.argmax(axis=1), random.integers(0, 3, 400))
    assert calibration.choose_temperature(logits, labels) == calibration.fit_temperature(logits, labels) > 2
    few = slice(ENOUGH_TO_CHOOSE - 1)
    assert calibration.fit_temperature(logits[few], labels[few]) > 2
    assert calibration.choose_temperature(logits[few], labels[few]) == 1.0, "too few, whatever they say"
    fitting = [seed for seed in range(20) if _chance(seed) != (1.0, 1.0)]
    kept = [seed for seed in fitting if _chance(seed)[1] != 1.0]
    assert len(kept) < len(fitting) / 2, "logits that are calibrated already: a gain on the same pictures is chance"


def _chance(seed: int) -> tuple[float, float]:
    """Fitted and chosen temperatures of answers that are as sure as they are right."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(60, 3)).astype(np.float32)
    cumulated = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).cumsum(axis=1)
    labels = np.minimum((random.random((60, 1)) > cumulated).sum(axis=1), 2)
    return calibration.fit_temperature(logits, labels), calibration.choose_temperature(logits, labels)


def test_probabilities_before_the_temperature() -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0], [500.0, 0.0, -500.0]])
    tempered = (logits / 2.5).softmax(1).numpy()
    np.testing.assert_allclose(calibration.without_temperature(tempered, 2.5), logits.softmax(1).numpy(), atol=1e-6)
