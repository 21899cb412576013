import math

from service.observability.request_metrics import ModelMetrics
from service.requests.phases import Phases


def test_an_item_whose_score_is_nan_is_an_item_and_no_prediction() -> None:
    metrics = ModelMetrics("m", "1", ["cat", "dog"], probabilities=True)
    metrics.answered(Phases(None, 0.1, 0.1), 0.1, [[(1, 0.5)], [(0, math.nan)]])
    assert metrics.statistics().items == 2
    assert metrics._predictions == {"cat": 0, "dog": 1}
