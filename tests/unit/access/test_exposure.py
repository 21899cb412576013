"""What is offered to whoever reaches a port."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.access.exposure import control_allowed, listens_beyond_loopback, open_access
from service.config import ServerConfig
from service.errors import UserError
from tests.integration.access_file import NAMES, write_auth_file

HERE = (("127.0.0.1",), ("127.8.8.8", "::1"), ("localhost",), ("[::1]",), ("::ffff:127.0.0.1",))
BEYOND = (("0.0.0.0",), ("::",), ("127.0.0.1", "10.0.0.7"), ("fe80::1%lo",), ("192.0.2.1",))


def config(hosts: tuple[str, ...], **settings: object) -> ServerConfig:
    return ServerConfig.model_validate({"repository": "models", "host": hosts, **settings})


@pytest.mark.parametrize("hosts", HERE)
def test_on_this_machine_alone_control_is_on_and_tokens_need_no_tls(hosts: tuple[str, ...], tmp_path: Path) -> None:
    assert not listens_beyond_loopback(config(hosts))
    assert control_allowed(config(hosts))
    assert not control_allowed(config(hosts, control="off"))
    auth = write_auth_file(tmp_path / "auth.toml")
    assert open_access(config(hosts, auth=auth), CollectorRegistry()) is not None


@pytest.mark.parametrize("hosts", BEYOND)
def test_beyond_it_control_has_to_be_asked_for_and_tokens_to_be_encrypted(
    hosts: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert listens_beyond_loopback(config(hosts))
    assert not control_allowed(config(hosts))
    assert control_allowed(config(hosts, control="on"))
    assert open_access(config(hosts), CollectorRegistry()) is None
    auth = write_auth_file(tmp_path / "auth.toml")
    assert control_allowed(config(hosts, auth=auth))
    with pytest.raises(UserError, match=r"has tokens, which would cross the network unencrypted.* --tls-cert .* --insecure"):
        open_access(config(hosts, auth=auth), CollectorRegistry())
    for settings in ({"insecure": True}, {"tls_cert": "cert.pem", "tls_key": "key.pem"}):
        assert open_access(config(hosts, auth=auth, **settings), CollectorRegistry()) is not None
    auth.write_text('[[certificates]]\nname = "a"\ngroup = "g"\n[groups.g]\n')  # nothing in it is secret
    access = open_access(config(hosts, auth=auth), CollectorRegistry())
    assert access is not None
    write_auth_file(auth)  # but is now
    access.look()
    assert (len(access.rules.tokens), list(access.file.groups)) == (0, ["g"])
    assert "would cross the network unencrypted" in caplog.text
    encrypted = open_access(config(hosts, auth=auth, tls_cert="cert.pem", tls_key="key.pem"), CollectorRegistry())
    assert encrypted is not None
    write_auth_file(auth, "# changed")
    encrypted.look()
    assert len(encrypted.rules.tokens) == len(NAMES)
