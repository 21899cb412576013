"""The answer to a request: a model's outputs, its best labels, and how long each phase took."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.served_version import ServedVersion
from service.engine.top_k import Results, best_labels
from service.errors import ModelFailed
from service.observability.trace_context import TraceContext
from service.phases import Phases

log = logging.getLogger(__name__)

DEFAULT_TOP_K = 5


class Answer:
    """What one version of a model computed for a request of n items.

    Attributes:
        served: the version that answered.
        scores: floating[n,K], a score for each label: probabilities if the model has a contract.
        top_k: how many labels an item gets, 1 to K.
        phases: seconds in each phase before encoding.
        finished: when inference ended, in `time.monotonic` seconds.
        trace: the client's trace, if it sent one.
    """

    __slots__ = ("_outputs", "finished", "phases", "scores", "served", "top_k", "trace")

    def __init__(
        self,
        served: ServedVersion,
        outputs: Sequence[NDArray[Any]],
        top_k: int,
        phases: Phases,
        finished: float,
        trace: TraceContext | None,
    ) -> None:
        scores = outputs[0]
        if scores.ndim != 2:
            scores = scores.reshape(len(scores), -1)
        self.served = served
        self.scores = scores
        self.top_k = min(top_k or DEFAULT_TOP_K, scores.shape[1])
        self.phases = phases
        self.finished = finished
        self.trace = trace
        self._outputs = outputs

    @property
    def outputs(self) -> dict[str, NDArray[Any]]:
        """Every output of the model by name, each [n, *shape]."""
        return {spec.name: output for spec, output in zip(self.served.model.outputs, self._outputs, strict=True)}

    def best(self) -> Results:
        """For each item its `top_k` labels as (index, score), best first, equal scores by index."""
        return best_labels(self.scores, self.top_k)

    def check_no_nan(self, best: Results) -> None:
        """Raises ModelFailed if a score is NaN, which has no place in the order that `best` gave."""
        # Softmax makes either all scores of an item NaN or none, so the first tells.
        if any(item[0][1] != item[0][1] for item in best) or (not self.served.model.has_contract and np.isnan(self.scores).any()):
            log.error("model %s version %d: the scores of a request are NaN", self.served.name, self.served.version)
            raise ModelFailed(f"model {self.served.name!r} gave NaN for this request")

    def delivered(self, best: Results, encode_seconds: float) -> None:
        """Records the request in the metrics. Call once, when the reply made of `best` has been passed to the transport."""
        self.served.metrics.answered(self.phases, encode_seconds, best, self.trace)
