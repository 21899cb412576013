"""The rules of `--auth` as the file changes."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.access.access import Access
from tests.integration.access_file import NAMES, write_auth_file
from tests.integration.test_access_certificates import EC, jwks


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("content", ["", "# nothing", "[groups]"])
def test_a_file_that_was_gone_counts_as_it_comes_back(tmp_path: Path, content: str) -> None:
    path = write_auth_file(tmp_path / "auth.toml")
    access = Access(path, CollectorRegistry())
    path.unlink()
    access.look()
    assert len(access.rules.tokens) == len(NAMES)
    path.write_text(content)
    access.look()
    assert not access.rules.tokens


def test_each_reason_why_the_file_is_not_used_is_logged_once_and_again_after_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_auth_file(tmp_path / "auth.toml")
    access = Access(path, CollectorRegistry())
    good = path.read_bytes()
    expected = []
    contents = ((b"[groups", "Expected ']'"), (b"", ""), (b"x = " + b"[" * 10_000, "--auth"), (good, ""), (None, "No such file"))
    for content, reason in contents * 2:
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        for _ in range(3):
            access.look()
        expected += [reason] if reason else []
    found = messages(caplog)
    assert [reason in message for reason, message in zip(expected, found, strict=True)] == [True] * 6


def test_a_file_that_names_keys_which_come_later_is_used_once_they_are_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_auth_file(tmp_path / "auth.toml")
    access = Access(path, CollectorRegistry())
    write_auth_file(path, '[jwt]\njwks = "keys.json"\nissuer = "https://issuer"\naudience = "convoy"')
    access.look()
    assert access.rules.jwt is None
    assert "'keys.json': No such file or directory" in caplog.text.replace(f"{tmp_path}/", "")
    (tmp_path / "keys.json").write_text(jwks(one=EC))
    access.look()
    assert access.rules.jwt is not None
