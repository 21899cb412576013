"""The file of `--auth`."""

from pathlib import Path

import pytest

from service.access.auth_file import TOKEN_PREFIX, new_token, parse_auth_file, token_digest
from service.errors import UserError
from tests.integration.access_file import NAMES, entry, write_auth_file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[groups", "Expected ']'"),
        (b"\xff\xfe", "can't decode byte 0xff"),
        ('[groups.a]\nrights = ["root"]', "groups.a.rights.0: Input should be 'read', 'control', 'shared-memory', 'metrics' or"),
        ('[groups.a]\nrights = "read"', "groups.a.rights: Input should be a valid tuple"),
        ("[groups.a]\nmodels = []", "groups.a.models: unknown key"),
        ("[groups.a]\npriority = 0", "groups.a.priority: Input should be greater than or equal to 1"),
        (entry("x", "nowhere"), "'x' is in group 'nowhere', which the file does not have"),
        (entry("x", "a") + entry("y", "a") + entry("x", "a") + "[groups.a]", "two tokens have the sha256"),
        ('[[tokens]]\nname = "x"\ngroup = "a"\nsha256 = "secret"\n[groups.a]', "tokens.0.sha256: String should match pattern"),
        (entry("x", "a", expires="2027-01-01T00:00:00") + "[groups.a]", "tokens.0.expires: a time needs its offset"),
        (entry("x\u2028", "a") + "[groups.a]", None),
        ('[[tokens]]\nname = "x\\n"\ngroup = "a"\n[groups.a]', "tokens.0.name: String should match pattern"),
        ('[[certificates]]\nname = "c"\ngroup = "a"\n' * 2 + "[groups.a]", "two certificates have the name 'c'"),
    ],
)
def test_what_is_not_accepted_is_one_line_without_its_value(content: str | bytes, message: str | None) -> None:
    given = content if isinstance(content, bytes) else content.encode()
    if message is None:
        assert parse_auth_file(Path("auth.toml"), given).tokens
        return
    with pytest.raises(UserError) as caught:
        parse_auth_file(Path("auth.toml"), given)
    assert str(caught.value).startswith("--auth 'auth.toml': ")
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_everything_is_read(tmp_path: Path) -> None:
    path = write_auth_file(tmp_path / "auth.toml", '[[certificates]]\nname = "batch.internal"\ngroup = "infer"')
    file = parse_auth_file(path, path.read_bytes())
    assert [token.name for token in file.tokens] == list(NAMES)
    assert (file.groups["patient"].priority, file.groups["patient"].infer) == (2, ("*",))
    assert file.certificates[0].group == "infer"


def test_tokens_are_long_random_and_found_by_their_digest() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    for token in tokens:
        assert token.startswith(TOKEN_PREFIX)
        assert len(token) == len(TOKEN_PREFIX) + 43
        assert len(token_digest(token)) == 64
