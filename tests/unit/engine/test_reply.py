"""The reply to a request whose client has left, and errors of requests that were not answered."""

from unittest.mock import Mock

import pytest

from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.query import Query
from service.engine.reply import reply_to, send_reply
from service.errors import NotFound, QueueFull


def test_a_reply_that_was_not_sent_counts_neither_as_answered_nor_as_failed() -> None:
    classifier, answer, responder = Mock(spec=Classifier), Mock(spec=Answer), Mock()
    responder.reply.return_value = False
    send_reply(classifier, responder, lambda *_: b"reply", None, answer)
    responder.reply.assert_called_once_with(b"reply")
    answer.delivered.assert_not_called()
    classifier.record_encoding_failure.assert_not_called()


def test_an_error_in_place_of_an_answer_is_passed_on_and_not_counted_again() -> None:
    classifier, write, responder = Mock(spec=Classifier), Mock(), Mock()
    error = QueueFull("full", 1.0)
    send_reply(classifier, responder, write, None, error)
    responder.fail.assert_called_once_with(error)
    write.assert_not_called()
    classifier.record_encoding_failure.assert_not_called()


def test_a_query_that_is_refused_raises_its_error() -> None:
    classifier, write = Mock(spec=Classifier), Mock()
    classifier.classify_blocking.side_effect = NotFound("no model")
    with pytest.raises(NotFound, match="no model"):
        reply_to(classifier, Query("m", ()), write, None)
    write.assert_not_called()
    classifier.record_encoding_failure.assert_not_called()
