"""The options of a gRPC transport."""

from unittest.mock import Mock

import pytest

from service.errors import UserError
from service.rpc.transport import Options


def test_an_ipv6_address_that_cannot_be_bound_is_shown_in_brackets() -> None:
    options = Options(["2001:db8::1"], 8001, max_message_bytes=1, methods=(), observer=Mock(), on_idle=Mock())
    with pytest.raises(UserError, match=r"^cannot listen for gRPC on \[2001:db8::1\]:8001: this machine has no such address$"):
        options.listen(Mock())
