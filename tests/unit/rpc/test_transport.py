"""The options of a gRPC transport."""

from unittest.mock import Mock

from service.rpc.transport import Options


def test_an_ipv6_address_is_shown_in_brackets() -> None:
    options = Options("::1", 8001, max_message_bytes=1, methods=(), observer=Mock(), on_idle=Mock())
    assert options.address == "[::1]:8001"
    assert str(options.cannot_listen()).startswith("cannot listen for gRPC on [::1]:8001: ")
