"""Who may call the kit's pods: real servers with the arguments, variables and mounts of the rendered Deployment."""

import contextlib
import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from export.data.datasets import Dataset
from service.client import CallFailed, Client
from tests.conftest import Spawn, convoy
from tests.deploy import kit
from tests.deploy.kit import Object
from tests.deploy.test_mounts import mount
from tests.integration.access_file import GROUPS, entry, token
from tests.integration.test_repository import eventually

Files = dict[str, bytes]

NOBODY: Files = {"auth.toml": GROUPS.encode()}
SHOP: Files = {"auth.toml": (entry("shop", "digits") + GROUPS).encode()}


@dataclass
class Pod:
    """The server's container of a rendering, on this machine: `root` stands for the root of its file system."""

    name: str
    root: Path
    secrets: dict[str, Files]

    def __post_init__(self) -> None:
        self.objects = kit.render(self.name)
        [(self.pod, self.container)] = kit.servers(self.objects)
        volumes = {volume["name"]: volume for volume in self.pod["volumes"]}
        for place in self.container["volumeMounts"]:
            assert "subPath" not in place, "such a file does not change with the Secret"
            if place["mountPath"].startswith("/etc/"):
                self.put(place["mountPath"], 1, self._files(volumes[place["name"]]))

    def put(self, path: str, generation: int, files: Files) -> None:
        """Lays files out as the kubelet does."""
        folder = self.root / path.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        mount(folder, generation, files)

    def _files(self, volume: Object) -> Files:
        if "secret" in volume:
            return self.secrets[volume["secret"]["secretName"]]
        [found] = [one for one in kit.of_kind(self.objects, "ConfigMap") if one["metadata"]["name"] == volume["configMap"]["name"]]
        return {name: text.encode() for name, text in found["data"].items()}

    @property
    def arguments(self) -> list[str]:
        """What comes after `convoy serve /models`, with a free admin port and the paths of this machine."""
        assert self.container["args"][:2] == ["serve", "/models"]
        assert "--admin-port=8003" in self.container["args"]
        words = [word.replace("--admin-port=8003", "--admin-port=0") for word in self.container["args"][2:]]
        return [word.replace("=/etc/", f"={self.root}/etc/") for word in words]

    @property
    def environment(self) -> dict[str, str]:
        return {variable["name"]: variable["value"].replace("/etc/", f"{self.root}/etc/", 1) for variable in self.container["env"]}


@pytest.fixture
def transport_name() -> str:
    """What the kit adds are files and variables: tests/integration/test_access.py has both transports."""
    return "fast"


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def pods(tmp_path: Path, authority: trustme.CA) -> dict[str, Pod]:
    """By rendering; their Secret lets `shop` in."""
    issued = authority.issue_cert("127.0.0.1")
    tls = {"tls.crt": issued.cert_chain_pems[0].bytes(), "tls.key": issued.private_key_pem.bytes()}
    secrets = {"convoy-tls": tls, "convoy-auth": SHOP}
    return {name: Pod(name, tmp_path / name, secrets) for name in ("auth", "auth-insecure")}


def outcome(client: Client, digits: Dataset) -> str:
    try:
        client.classify([digits.test.encoded(0)], "digits")
    except CallFailed as error:
        return error.code
    return "OK"


def get(port: int, path: str) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


@pytest.mark.parametrize("name", ["auth", "auth-insecure"])
def test_a_token_of_the_secret_lets_in_and_probes_and_prometheus_need_none(
    name: str, pods: dict[str, Pod], authority: trustme.CA, repository: Path, spawn: Spawn, digits: Dataset, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pod = pods[name]
    for variable, value in pod.environment.items():
        monkeypatch.setenv(variable, value)
    server = spawn(repository, *pod.arguments)
    admin_port = json.loads((tmp_path / "ready-0.json").read_text())["admin_port"]
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    options: dict[str, Any] = {"tls_ca": tmp_path / "ca.crt"} if name == "auth" else {}
    address = f"127.0.0.1:{server.grpc_port}"
    with Client(address, **options) as stranger, Client(address, token=token("shop"), **options) as shop:
        assert outcome(stranger, digits) == "UNAUTHENTICATED"
        assert outcome(shop, digits) == "OK"

        [monitor] = kit.of_kind(kit.render("monitoring"), "ServiceMonitor")
        assert monitor["spec"]["endpoints"] == [{"port": "admin", "path": "/metrics", "interval": "15s"}]
        assert get(admin_port, "/metrics") == 200
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert answers(pod.container[kind], server.grpc_port, admin_port), kind

        pod.put("/etc/convoy/auth", 2, NOBODY)
        eventually(lambda: outcome(shop, digits) == "UNAUTHENTICATED")


def answers(probe: Object, grpc_port: int, admin_port: int) -> bool:
    """Whether a probe of the kubelet, which has no credentials, finds the server well."""
    if "httpGet" in probe:
        assert probe["httpGet"]["port"] == "admin"
        return get(admin_port, probe["httpGet"]["path"]) == 200
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
        return bool(health.Check(asked, timeout=10).status == health_pb2.HealthCheckResponse.SERVING)


def test_without_tls_tokens_are_refused_until_insecure_is_said(pods: dict[str, Pod], repository: Path) -> None:
    """`auth` without `tls`, which it says that it needs, is what is left of `auth-insecure` without its variable."""
    pod = pods["auth-insecure"]
    auth = pod.environment["CONVOY_AUTH"]
    assert pod.environment == {"CONVOY_AUTH": auth, "CONVOY_INSECURE": "true"}
    result = convoy("serve", repository, *pod.arguments, "--grpc-port=0", "--http-port=0", CONVOY_AUTH=auth)
    assert result.returncode == 2
    [line] = result.stderr.strip().splitlines()
    assert "has tokens, which would cross the network unencrypted" in line
    assert "--tls-cert" in line
