"""The HTTP port's address."""

from pathlib import Path
from unittest.mock import Mock

import pytest
from prometheus_client import CollectorRegistry

from service.config import ServerConfig
from service.errors import UserError
from service.http.server import HttpServer


def test_an_ipv6_address_that_cannot_be_bound_is_shown_in_brackets(tmp_path: Path) -> None:
    config = ServerConfig(repository=tmp_path, host=("2001:db8::1",))
    server = HttpServer(config, CollectorRegistry(), Mock(), lambda: "", app=None, max_body_bytes=1)
    with pytest.raises(UserError, match=r"cannot listen for HTTP on \[2001:db8::1\]:8002: "):
        server.start()
