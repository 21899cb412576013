"""Errors to gRPC statuses."""

import inspect
from collections import Counter

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status

from service import errors
from service.rpc.status import CODES, status_of


def test_every_error_that_ends_a_request_has_a_status() -> None:
    request_errors = {error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, errors.RequestError)}
    by_request = {errors.LoadError}  # a load by request ends with it too
    assert set(CODES) == request_errors | by_request
    codes = Counter(code for error, code in CODES.items() if error is not errors.RequestError)
    assert [code for code, count in codes.items() if count > 1] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert {error for error, code in CODES.items() if code is grpc.StatusCode.RESOURCE_EXHAUSTED} == {
        errors.QueueFull, errors.QuotaExceeded, errors.SharedMemoryFull, errors.TooManyBytes, errors.TooLarge,
        errors.TooManyResults,
    }  # fmt: skip


class TooLarge(errors.InvalidRequest):
    pass


class FarTooLarge(TooLarge):
    pass


class Busy(errors.QueueFull):
    pass


class NewKind(errors.RequestError):
    pass


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TooLarge("17 MiB", "items"), grpc.StatusCode.INVALID_ARGUMENT),
        (FarTooLarge("17 GiB", "items"), grpc.StatusCode.INVALID_ARGUMENT),
        (Busy("full", 1.0), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.GoldenMismatch("other scores"), grpc.StatusCode.FAILED_PRECONDITION),
        (NewKind("not like this"), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_subclass_has_the_status_of_its_nearest_base(error: errors.ConvoyError, code: grpc.StatusCode) -> None:
    for _ in range(2):
        status = status_of(error)
        assert (status.code, status.message) == (code, str(error))


class Malformed(ValueError, errors.RequestError):
    """Python's own error first."""


def test_a_status_does_not_depend_on_which_errors_came_before() -> None:
    assert status_of(ValueError("in a bug")).code is grpc.StatusCode.INTERNAL
    assert status_of(Malformed("in a request")).code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_subclass_has_the_details_of_its_base() -> None:
    def detail(error: errors.RequestError, into: BadRequest | RetryInfo) -> None:
        [(_, packed), *_] = status_of(error).trailing
        assert isinstance(packed, bytes)
        assert Status.FromString(packed).details[0].Unpack(into)

    violation, retry = BadRequest(), RetryInfo()
    detail(TooLarge("17 MiB", "items"), violation)
    detail(Busy("full", 2.0), retry)
    assert (violation.field_violations[0].field, retry.retry_delay.seconds) == ("items", 2)


@pytest.mark.parametrize("error", [OSError("/var/secret"), errors.UserError("/var/secret"), KeyboardInterrupt("/var/secret")])
def test_any_other_error_is_internal_without_its_text(error: BaseException) -> None:
    status = status_of(error)
    assert status.code is grpc.StatusCode.INTERNAL
    assert "secret" not in status.message
    assert status.trailing == ()


def test_however_long_a_message_is_it_fits_into_the_trailers() -> None:
    for text in ("served are: " + 9999 * "model, ", 9999 * "\u00fc"):
        status = status_of(errors.InvalidRequest(text, "inputs"))
        assert len(status.message.encode()) < 1010
        assert sum(len(value) for _, value in status.trailing) < 2500
        assert status.message[:50] == text[:50]
