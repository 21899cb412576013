"""The keys of an issuer of JWTs."""

import json
from pathlib import Path

import pytest

from service.access.jwks import KeyFile, parse_keys
from tests.integration.test_access_certificates import EC, RSA, jwks


def test_what_is_no_key_is_left_out_and_what_has_none_is_refused() -> None:
    listed = json.loads(jwks(one=EC))["keys"]
    odd = [
        {"kty": "OKP", "crv": "X448", "x": "AA"},
        {"kty": "EC", "crv": "secp112r1", "x": "AA", "y": "AA"},
        {"kty": "RSA", "n": {}},
    ]
    assert list(parse_keys(json.dumps({"keys": [*odd, listed[0], listed[0] | {"kid": ["a", "list"]}]}).encode())) == ["one", None]
    for content in (json.dumps({"keys": odd}).encode(), b"[" * 100_000, b"[]", b"\xff", b""):
        with pytest.raises(ValueError):  # noqa: PT011 - of json and of ours
            parse_keys(content)


def test_a_file_of_keys_that_is_gone_or_broken_is_logged_once_and_the_keys_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    good = jwks(one=EC)
    path.write_text(good)
    file = KeyFile(path)
    changes, reasons = [], []
    for content, reason in (
        (None, "No such file"),
        (good, ""),
        ("[]", "not a JWKS"),
        (None, "No such file"),
        ("", "Expecting value"),
    ):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        changes += [file.look() for _ in range(3)]
        reasons += [reason] if reason else []
    assert not any(changes)
    assert file.keys is not None
    assert list(file.keys) == ["one"]
    logged = [record.getMessage() for record in caplog.records]
    assert [reason in message for reason, message in zip(reasons, logged, strict=True)] == [True] * len(reasons)
    path.write_text(jwks(two=RSA))
    assert [file.look(), file.look()] == [True, False]
    assert list(file.keys) == ["two"]
