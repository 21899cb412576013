"""deploy/load-balancing/nginx.conf before a real server, and nginx's defaults."""

import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from export.data.datasets import Dataset
from tests.conftest import Spawn
from tests.deploy import balanced, kit

pytestmark = pytest.mark.system

MAIN = "daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {paths} {server} }}"
BUFFERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@pytest.fixture
def transport_name() -> str:
    """gRPC has no part in this: once is enough."""
    return "fast"


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, []),
        ({"proxy_pass http://convoy;": "proxy_pass http://convoy/;"}, []),
        ({"Host $http_host;": "X-Forwarded-Host $http_host;"}, ["--trusted-proxies", "127.0.0.1"]),
        ({"Host $http_host;": "X-Nothing 1;"}, ["--allowed-origins", "http://cats.example"]),
    ],
    ids=["as it is", "prefix cut off", "host of the upstream, forwarded host", "host of the upstream, allowed origin"],
)
def test_nginx(
    repository: Path, spawn: Spawn, digits: Dataset, tmp_path: Path, changes: dict[str, str], options: list[str]
) -> None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    assert nginx is not None, "nginx is not installed: apt-get install nginx"
    server = spawn(repository, "--root-path", "/convoy", "--allowed-hosts", "cats.example,convoy", *options)
    [port] = balanced.free_ports(1)
    config = (kit.DEPLOY / "load-balancing" / "nginx.conf").read_text()
    ours = {"127.0.0.1:8002": f"127.0.0.1:{server.http_port}", "0.0.0.0:80": f"127.0.0.1:{port}"}
    for known, wanted in (ours | changes).items():
        assert config.count(known) == 1, known
        config = config.replace(known, wanted)
    paths = "".join(f"{name}_temp_path {tmp_path / name};" for name in BUFFERS)
    main = tmp_path / "nginx.conf"
    main.write_text(MAIN.format(folder=tmp_path, paths=paths, server=config))

    def ask(path: str, body: bytes | None = None, origin: str = "http://cats.example") -> int:
        headers = {"Host": "cats.example"} | ({"Origin": origin} if body else {})
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                status: int = response.status
                return status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    with balanced.running([nginx, "-p", tmp_path, "-e", "stderr", "-c", main], port, tmp_path / "nginx.log"):
        for path in ("/convoy/", "/convoy/page/page.js", "/convoy/readyz", "/convoy/v2/models/digits"):
            assert ask(path) == 200, path
        picture = digits.test.encoded(0)
        assert ask("/convoy/page/classify/digits", picture) == 200
        assert ask("/convoy/page/classify/digits", picture, "http://evil.example") == 403
