"""Errors to HTTP statuses."""

import inspect
import json

import pytest
from werkzeug.exceptions import MethodNotAllowed

from service import errors
from service.http.responses import STATUSES, response_to_error

ENVIRON = {"REQUEST_METHOD": "PUT", "PATH_INFO": "/v2"}


def test_every_error_that_ends_a_request_has_a_status() -> None:
    request_errors = {error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, errors.RequestError)}
    assert set(STATUSES) == request_errors | {errors.LoadError}


def test_what_a_client_sent_is_not_repeated_at_length() -> None:
    response = response_to_error(errors.InvalidRequest(f"{'x' * 10**6} is too long"), ENVIRON)
    assert json.loads(response.get_data())["error"] == "x" * 1000 + "…"


class TooLarge(errors.InvalidRequest):
    pass


class FarTooLarge(TooLarge):
    pass


class Busy(errors.QueueFull):
    pass


class NewKind(errors.RequestError):
    pass


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TooLarge("17 MiB", "items"), 400),
        (FarTooLarge("17 GiB", "items"), 400),
        (Busy("full", 2.0), 429),
        (errors.GoldenMismatch("other scores"), 400),
        (NewKind("not like this"), 400),
    ],
)
def test_a_subclass_has_the_status_of_its_nearest_base(error: errors.ConvoyError, status: int) -> None:
    for _ in range(2):
        response = response_to_error(error, ENVIRON)
        assert (response.status_code, json.loads(response.get_data())) == (status, {"error": str(error)})
        assert response.headers.get("Retry-After") == ("2" if isinstance(error, errors.QueueFull) else None)


@pytest.mark.parametrize("error", [OSError("/var/secret"), errors.UserError("/var/secret")])
def test_any_other_error_is_logged_and_answered_without_its_text(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    response = response_to_error(error, ENVIRON)
    assert (response.status_code, b"secret" in response.get_data()) == (500, False)
    assert "PUT /v2 failed" in caplog.text
    assert "/var/secret" in caplog.text


def test_a_method_that_is_not_allowed() -> None:
    response = response_to_error(MethodNotAllowed(["GET"]), ENVIRON)
    assert (response.status_code, response.headers["Allow"]) == (405, "GET")
    assert json.loads(response.get_data()) == {"error": "PUT /v2: method not allowed"}
