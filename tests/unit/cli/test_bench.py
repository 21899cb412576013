"""Where `convoy bench` looks for a server's metrics."""

import pytest

from service.cli.bench import _host_and_port


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("127.0.0.1:8001", ("127.0.0.1", "8001")),
        ("[::1]:8001", ("[::1]", "8001")),
        ("dns:///service:9", ("service", "9")),
        ("dns:service:9", ("service", "9")),
        ("ipv4:127.0.0.1:8001", ("127.0.0.1", "8001")),
        ("unix:/run/convoy.sock:8001", ("HOST", "PORT")),
        ("127.0.0.1:8001,127.0.0.2:8001", ("HOST", "PORT")),
    ],
)
def test_the_metrics_are_those_of_the_one_host_that_the_server_address_names(server: str, expected: tuple[str, str]) -> None:
    assert _host_and_port(server) == expected
