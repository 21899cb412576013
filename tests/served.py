"""A served version without a model, for tests of what comes before and after it. Its own classes are real: they may be compiled."""

from unittest.mock import Mock

from service.engine.batcher import Batcher
from service.engine.served_version import ServedVersion
from service.observability.request_metrics import ModelMetrics
from service.policy import Policy


def served_version(max_request_items: int = 64) -> ServedVersion:
    """Version 2 of a model `m` with the labels `a` and `b`."""
    batcher = Batcher(name="m", version=2, max_batch_items=1, max_queue_items=64, measured={})
    metrics = ModelMetrics("m", "2", ["a", "b"], True)
    policy = Policy(max_request_items=max_request_items)
    return ServedVersion("m", 2, Mock(to_probabilities=None), policy, batcher, metrics, ())
