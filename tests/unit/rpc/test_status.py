import inspect

import grpc

from service import errors
from service.rpc.status import _CODES, status_of


def test_every_error_that_ends_a_request_has_a_status() -> None:
    leaves = {
        error
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.RequestError) and error is not errors.RequestError
    }
    asked_for = {errors.LoadError}  # a load by request ends with it too
    assert set(_CODES) == leaves | asked_for
    assert len(set(_CODES.values())) == len(_CODES)


def test_what_was_not_raised_on_purpose_does_not_show_its_text() -> None:
    status = status_of(OSError("/var/secret"))
    assert status.code is grpc.StatusCode.INTERNAL
    assert "secret" not in status.message
    assert status.trailing == ()


def test_however_long_a_message_is_it_fits_into_the_trailers() -> None:
    for text in ("served are: " + 9999 * "model, ", 9999 * "\u00fc"):
        status = status_of(errors.InvalidRequest(text, "inputs"))
        assert len(status.message.encode()) < 1010
        assert sum(len(value) for _, value in status.trailing) < 2500
        assert status.message[:50] == text[:50]
