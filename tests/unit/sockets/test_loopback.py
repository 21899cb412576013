"""Which hosts are taken for this machine, and who asks: a name that only looks like its addresses gets nothing unencrypted."""

import pytest

from service.access.auth_file import check_key_source
from service.bench.server_metrics import may_carry_token
from service.client import Client
from service.errors import UserError
from service.sockets.loopback import is_loopback

HERE = ["127.0.0.1", "127.8.9.10", "::1", "::1%lo", "localhost", "LocalHost"]
ELSEWHERE = [
    "127.evil.example.com", "127.0.0.1.example.com", "127.", "127.1", "127.0.0.256", "128.0.0.1", "0.0.0.0", "::", "::2",
    "localhost.example.com", "xlocalhost", "",
]  # fmt: skip


@pytest.mark.parametrize("host", HERE)
def test_a_host_that_is_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_a_host_that_may_be_another(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["127.evil.example.com", "127.0.0.1.example.com", "127.1"])
def test_nothing_secret_is_sent_in_plain_to_a_name_that_looks_like_an_address_of_this_machine(host: str) -> None:
    with pytest.raises(UserError, match="a token is not sent unencrypted to another machine"):
        Client(f"{host}:8001", token="t")
    assert not may_carry_token(f"http://{host}:8002/metrics")
    with pytest.raises(ValueError, match="must begin with https"):
        check_key_source(f"http://{host}/jwks")


@pytest.mark.parametrize("host", ["127.8.9.10", "[::1]", "localhost"])
def test_what_is_sent_to_this_machine_need_not_be_encrypted(host: str) -> None:
    Client(f"{host}:8001", token="t").close()
    assert may_carry_token(f"http://{host}:8002/metrics")
    check_key_source(f"http://{host}/jwks")
