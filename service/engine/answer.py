"""The answer to a request: a model's outputs, its best labels, and how long each phase took."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.outputs import BatchOutputs
from service.engine.served_version import ServedVersion
from service.engine.top_k import Results, best_labels
from service.errors import InvalidRequest, ModelFailed, RequestError
from service.observability.trace_context import TraceContext
from service.requests.phases import Phases

log = logging.getLogger(__name__)

DEFAULT_TOP_K = 5


class Answer:
    """What one version of a model computed for a request of n items.

    Attributes:
        served: the version that answered.
        top_k: how many labels an item gets, 1 to K.
        phases: seconds in each phase before encoding.
        items: n.
        finished: when inference ended, in `time.monotonic` seconds.
        trace: the client's trace, if it sent one.
        tensor: the request's input, if it came as a tensor.
    """

    __slots__ = (
        "_batch",
        "_scores",
        "_start",
        "_stop",
        "_wanted",
        "finished",
        "items",
        "phases",
        "served",
        "tensor",
        "top_k",
        "trace",
    )

    def __init__(
        self,
        served: ServedVersion,
        batch: BatchOutputs,
        start: int,
        stop: int,
        top_k: int,
        phases: Phases,
        finished: float,
        trace: TraceContext | None,
        tensor: NDArray[Any] | None = None,
    ) -> None:
        """The request's rows are `start` to `stop` of the batch."""
        self.served = served
        self._batch = batch
        self._start = start
        self._stop = stop
        self.items = stop - start
        self._scores = scores = batch.scores(served.model.to_probabilities)
        self._wanted = wanted = top_k or DEFAULT_TOP_K
        labels = scores.shape[1]
        self.top_k = wanted if wanted < labels else labels
        self.phases = phases
        self.finished = finished
        self.trace = trace
        self.tensor = tensor

    @property
    def scores(self) -> NDArray[Any]:
        """floating[n,K], a score for each label: probabilities if the model gives some."""
        return self._scores[self._start : self._stop]

    @property
    def outputs(self) -> dict[str, NDArray[Any]]:
        """The outputs by name, each [n, *shape]; those that config.pbtxt lists, in its shapes, if it has others than the graph."""
        forms = self.served.forms
        return self.computed if forms is None else forms.from_items(self.computed)

    @property
    def computed(self) -> dict[str, NDArray[Any]]:
        """The outputs of the graph by name, each [n, *shape], whatever config.pbtxt lists."""
        outputs = self.served.model.outputs
        return {spec.name: output for spec, output in zip(outputs, self._parts(), strict=False)}  # hidden follow

    @property
    def hidden(self) -> dict[str, NDArray[Any]]:
        """The hidden outputs by name, each [n, *shape], of a query that asked for them."""
        model = self.served.model
        return dict(zip(model.hidden, self._parts()[len(model.outputs) :], strict=True))

    def content(self, name: str) -> bytes:
        """The bytes of one of `outputs`."""
        served = self.served
        if served.forms is not None:
            return self.outputs[name].tobytes()
        return self._batch.content(served.model.output_places[name], self._start, self._stop)

    def _parts(self) -> Sequence[NDArray[Any]]:
        return self._batch.part(self._start, self._stop)

    def best(self) -> Results:
        """For each item its `top_k` labels as (index, score), best first, equal scores by index."""
        top_k = self.top_k
        best = self._batch.best(self._scores, top_k)[self._start : self._stop]
        return best if len(best[0]) == top_k else [item[:top_k] for item in best]

    def best_of_other_heads(self) -> list[Results]:
        """The best labels of each head but the first. Raises `not_finite` if a probability is NaN."""
        model = self.served.model
        outputs = self.computed
        scores = [outputs[head.output] for head in model.heads[1:]]
        if any(np.isnan(each).any() for each in scores):
            raise self.not_finite(f"model {self.served.name!r} gave NaN for this request")
        return [best_labels(each, min(self._wanted, each.shape[1])) for each in scores]

    def check_no_nan(self, best: Results) -> None:
        """Raises `not_finite` if a score is NaN, which has no place in the order that `best` gave."""
        if self._batch.has_nan(self._scores) and (
            any(item[0][1] != item[0][1] for item in best)
            or (not self.served.model.nan_is_in_all_scores and np.isnan(self.scores).any())
        ):
            raise self.not_finite(f"model {self.served.name!r} gave NaN for this request")

    def not_finite(self, message: str) -> RequestError:
        """The error for outputs that are NaN or infinite: ModelFailed with a message, unless the input was not finite either."""
        error = at_fault(ModelFailed(message), self.served, self.tensor)
        if isinstance(error, ModelFailed):
            log.error("model %s version %d: the outputs of a request are NaN or infinite", self.served.name, self.served.version)
        return error

    def delivered(self, best: Results, encode_seconds: float) -> None:
        """Records the request in the metrics. Call once, when the reply made of `best` has been passed to the transport."""
        self.served.metrics.answered(self.phases, encode_seconds, best, self.trace)


def at_fault(error: ModelFailed, served: ServedVersion, tensor: NDArray[Any] | None) -> RequestError:
    """The error for a request on which the model failed: InvalidRequest if its tensor holds NaN or infinity, else `error`.

    Tensors are looked at only here: a model may take NaN for a value that is missing, and answer.
    """
    if tensor is None or np.isfinite(tensor).all():
        return error
    name = served.model.input.name
    return InvalidRequest(f"input {name!r} holds NaN or infinite values, and the model gave no numbers for them", "items")
