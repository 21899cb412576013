"""Clients with a token: the library, `convoy classify` and `convoy bench`."""

import asyncio
import json
from pathlib import Path

import pytest

from export.data.datasets import Dataset
from service.client import AsyncClient, CallFailed, Client
from service.errors import UserError
from service.server import Server
from tests.conftest import Serve, convoy
from tests.integration.access_file import token, write_auth_file
from tests.program import convoy_here, one_line


@pytest.fixture
def server(repository: Path, serve: Serve, tmp_path: Path) -> Server:
    return serve(repository, auth=write_auth_file(tmp_path / "auth.toml"))


@pytest.fixture
def picture(tmp_path: Path, digits: Dataset) -> Path:
    path = tmp_path / "digit.png"
    path.write_bytes(digits.test.encoded(0))
    return path


def test_every_call_has_the_token(server: Server, picture: Path) -> None:
    asked = []

    def current() -> str:
        asked.append(1)
        return token("digits")

    address = f"127.0.0.1:{server.grpc_port}"
    with Client(address, token=current) as client:
        assert client.classify([picture], model="digits").model == "digits"
        assert [number for number, _ in client.classify_stream([[picture]] * 3, model="digits")]
        assert client.model("digits").model == "digits"
        with pytest.raises(CallFailed, match=r"PERMISSION_DENIED: .* does not have the right 'read'"):
            client.models()
    assert len(asked) >= 4

    async def use() -> None:
        async with AsyncClient(address, token=token("admin")) as client:
            assert (await client.classify([picture], model="digits")).model == "digits"
            assert [number async for number, _ in client.classify_stream([[picture]] * 3, model="digits")]
            assert await client.models()
        async with AsyncClient(address) as client:
            with pytest.raises(CallFailed, match="UNAUTHENTICATED"):
                await client.models()

    asyncio.run(use())


@pytest.mark.parametrize("servers", ["192.0.2.1:8001", "dns:///example.org:8001", ["127.0.0.1:1", "192.0.2.1:1"], "xds:///s"])
def test_a_token_is_not_sent_unencrypted_to_another_machine(servers: str | list[str]) -> None:
    with pytest.raises(UserError, match="a token is not sent unencrypted to another machine") as caught:
        Client(servers, token="convoy_secret")
    assert "secret" not in str(caught.value)
    Client(servers, token="convoy_secret", insecure=True).close()


@pytest.mark.parametrize("servers", ["127.0.0.1:1", "[::1]:1", "localhost:1", "unix:socket", ["127.0.0.1:1", "[::1]:1"]])
def test_on_this_machine_it_is(servers: str | list[str]) -> None:
    Client(servers, token="convoy_secret").close()


@pytest.mark.parametrize("text", ["", "two words", "secret\n", "tökén", b"bytes"])
def test_what_no_header_can_hold_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="the token is not one") as caught:
        Client("127.0.0.1:1", token=text)
    assert "secret" not in str(caught.value)


def test_the_commands_take_it_from_a_file_or_the_environment(server: Server, picture: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(token("admin") + "\n")
    classify = ("classify", picture, "--model", "digits", "--server", f"127.0.0.1:{server.grpc_port}")
    assert convoy(*classify, "--token-file", file).returncode == 0
    assert convoy(*classify, CONVOY_TOKEN=token("digits")).returncode == 0
    assert convoy(*classify, "--token-file", file, CONVOY_TOKEN="convoy_unknown").returncode == 0
    line = one_line(convoy_here(*classify))
    assert line.endswith("does not know who calls: no credentials: send `authorization: Bearer TOKEN` (--token-file, CONVOY_TOKEN)")
    line = one_line(convoy_here(*classify, CONVOY_TOKEN="convoy_unknown"))
    assert line.endswith("does not know who calls: the token is not known (--token-file, CONVOY_TOKEN)")
    file.write_text("two words")
    assert one_line(convoy_here(*classify, "--token-file", file)).startswith(
        f"convoy: --token-file {str(file)!r}: the token is not one"
    )
    assert "No such file" in one_line(convoy_here(*classify, "--token-file", tmp_path / "none"))


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_bench_sends_it_to_both_ports(server: Server, stream: list[str]) -> None:
    metrics = f"http://127.0.0.1:{server.http_port}/metrics"
    result = convoy(
        "bench", "--model", "digits", "--server", f"127.0.0.1:{server.grpc_port}", "--seconds", "0.3", "--warmup", "0",
        "--metrics", metrics, "--json", *stream, CONVOY_TOKEN=token("admin"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["codes"].keys() == {"OK"}
    assert found["server"]["requests"] > 0


def test_bench_says_where_it_would_not_send_it(server: Server) -> None:
    command = ("bench", "--model", "digits", "--server", f"127.0.0.1:{server.grpc_port}", "--metrics", "http://192.0.2.1/metrics")
    line = one_line(convoy_here(*command, CONVOY_TOKEN=token("admin")))
    assert line.startswith("convoy: the token is not sent unencrypted to http://192.0.2.1/metrics")


def test_a_token_that_is_made_is_taken_at_once(repository: Path, serve: Serve, tmp_path: Path, picture: Path) -> None:
    auth = tmp_path / "auth.toml"
    auth.write_text('[groups.clients]\ninfer = ["digits"]')
    command = ("token", "create", "--name", "shop \U0001f600", "--group", "clients", "--days", "1")
    made = convoy_here(*command, "--auth-file", auth)
    assert (made.returncode, made.stderr) == (0, "")
    shown = convoy_here(*command)
    assert shown.returncode == 0
    assert shown.stderr.startswith('[[tokens]]\nname = "shop \U0001f600"\ngroup = "clients"\nsha256 = "')
    assert made.stdout.startswith("convoy_")
    assert made.stdout.strip() not in auth.read_text() + shown.stderr
    auth.write_text(auth.read_text() + shown.stderr)
    server = serve(repository, auth=auth)
    for text in (made.stdout, shown.stdout):
        with Client(f"127.0.0.1:{server.grpc_port}", token=text.strip()) as client:
            assert client.classify([picture], model="digits").results


def test_a_token_for_a_file_that_would_not_be_accepted_is_not_made(tmp_path: Path) -> None:
    auth = tmp_path / "auth.toml"
    create = ("token", "create", "--name", "shop", "--auth-file", auth)
    assert "make it first, with the groups and their rights" in one_line(convoy_here(*create, "--group", "clients"))
    auth.write_text("[groups.clients]\n")
    assert "'shop' is in group 'others', which the file does not have" in one_line(convoy_here(*create, "--group", "others"))
    assert auth.read_text() == "[groups.clients]\n"
    assert "printable characters" in one_line(convoy_here("token", "create", "--name", "a\nb", "--group", "clients"))
