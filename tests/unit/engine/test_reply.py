"""The reply to a request whose client has left, and errors of requests that were not answered."""

from unittest.mock import Mock

import numpy as np
import pytest

from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.outputs import BatchOutputs
from service.engine.query import Query
from service.engine.reply import reply_to, send_reply
from service.errors import NotFound, QueueFull
from service.observability.metrics import Metrics
from service.requests.phases import Phases
from tests.served import served_version


@pytest.fixture
def metrics() -> Mock:
    return Mock(spec=Metrics)


@pytest.fixture
def repository() -> Mock:
    return Mock(splits={})


@pytest.fixture
def classifier(metrics: Mock, repository: Mock) -> Classifier:
    return Classifier(repository, metrics, cpus=1)


def test_a_reply_that_was_not_sent_counts_neither_as_answered_nor_as_failed(classifier: Classifier, metrics: Mock) -> None:
    served = served_version()
    outputs = BatchOutputs([np.array([[0.25, 0.75]], np.float32)])
    answer = Answer(served, outputs, 0, 1, 1, Phases(None, 0.1, 0.2), 1.0, None)
    responder = Mock()
    responder.reply.return_value = False
    send_reply(classifier, responder, lambda *_: b"reply", None, answer)
    responder.reply.assert_called_once_with(b"reply")
    found = served.metrics.statistics()
    assert (found.items, found.failures, metrics.mock_calls) == (0, {}, [])


def test_an_error_in_place_of_an_answer_is_passed_on_and_not_counted_again(classifier: Classifier, metrics: Mock) -> None:
    write, responder = Mock(), Mock()
    error = QueueFull("full", 1.0)
    send_reply(classifier, responder, write, None, error)
    responder.fail.assert_called_once_with(error)
    write.assert_not_called()
    assert metrics.mock_calls == []


def test_a_query_that_is_refused_raises_its_error(classifier: Classifier, metrics: Mock, repository: Mock) -> None:
    write = Mock()
    repository.acquire.side_effect = NotFound("no model")
    with pytest.raises(NotFound, match="no model"):
        reply_to(classifier, Query("m", ()), write, None)
    write.assert_not_called()
    assert metrics.mock_calls == []
