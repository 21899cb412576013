"""`--audit-log`: who changed what, and who was refused."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from service.access.audit import REFUSALS_A_SECOND, AuditLog
from service.pb.inference import open_inference_pb2 as oip
from tests.conftest import Spawn, convoy, full_disk
from tests.integration.access_file import bearer, metadata, write_auth_file
from tests.integration.test_repository import eventually
from tests.integration.test_rest import ask
from tests.program import one_line


@pytest.fixture
def transport_name() -> str:
    """What is written comes from behind the transport: once is enough."""
    return "fast"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_changes_and_refusals_are_written_with_who_and_what(repository: Path, spawn: Spawn, tmp_path: Path, workers: str) -> None:
    audit = tmp_path / "audit.jsonl"
    auth = write_auth_file(tmp_path / "auth.toml")
    server = spawn(repository, "--auth", str(auth), "--audit-log", str(audit), "--workers", workers)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        unload: Any = channel.unary_unary(
            "/inference.GRPCInferenceService/RepositoryModelUnload", oip.RepositoryModelUnloadRequest.SerializeToString
        )
        unload(oip.RepositoryModelUnloadRequest(model_name="digits"), timeout=30, metadata=metadata("control"))
        with pytest.raises(grpc.RpcError):
            unload(oip.RepositoryModelUnloadRequest(model_name="digits"), timeout=30, metadata=metadata("nobody"))
    path = "/v2/repository/models/{}/load"
    assert ask(server, "POST", path.format("digits"), b"{}", Authorization=bearer("admin"))[0] == 200
    assert ask(server, "POST", path.format("cats"), b"{}", Authorization=bearer("admin"))[0] == 404
    assert ask(server, "POST", path.format("digits"), b"{}", Authorization=bearer("read"))[0] == 403
    found = [
        {key: line.get(key) for key in ("what", "who", "model", "outcome")} for line in lines(audit) if line["what"] != "version"
    ]
    assert {"what": "unload", "who": "control", "model": "digits", "outcome": "ok"} in found
    assert {"what": "load", "who": "admin", "model": "digits", "outcome": "ok"} in found
    assert any(line["what"] == "load" and str(line["outcome"]).startswith("NotFound") for line in found)
    assert {"unknown", "forbidden"} <= {line["outcome"] for line in found}
    versions = [line for line in lines(audit) if line["what"] == "version"]
    assert {line["outcome"] for line in versions} == {"ready", "no longer served"}
    assert all(len(line["digest"]) >= 16 and line["version"] == 1 for line in versions)
    assert all(line["time"] for line in lines(audit))
    assert "convoy_" not in audit.read_text(), "no token"
    audit.rename(tmp_path / "audit.jsonl.1")
    ask(server, "POST", path.format("digits"), b"{}", Authorization=bearer("admin"))
    eventually(lambda: audit.exists() and any(line["what"] == "load" for line in lines(audit)))
    for _ in range(3 * REFUSALS_A_SECOND):
        ask(server, "GET", "/v2/models", Authorization="Bearer wrong")
    assert len(lines(audit)) < 3 * REFUSALS_A_SECOND + 10
    assert server.terminate() == 0


def test_what_a_policy_says_is_written_when_it_changes(repository: Path, spawn: Spawn, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    server = spawn(repository, "--audit-log", str(audit))

    def written(what: str) -> list[tuple[Any, Any]]:
        return [(line["outcome"], line.get("settings")) for line in lines(audit) if line["what"] == what]

    assert written("policy") == [], "the defaults"
    policy = repository / "digits" / "serving.toml"
    for text in ("max_batch_size = 8", "max_batch_size = 9\naliases = {stable = 1}"):
        policy.write_text(text)
        assert ask(server, "POST", "/v2/repository/models/digits/load", b"{}")[0] == 200
    policy.write_text("max_batch_size = 0")
    assert ask(server, "POST", "/v2/repository/models/digits/load", b"{}")[0] != 200
    policy.unlink()
    assert ask(server, "POST", "/v2/repository/models/digits/load", b"{}")[0] == 200
    *accepted, back = [settings for outcome, settings in written("policy") if outcome == "ok"]
    assert accepted == [{"max_batch_size": 8}, {"max_batch_size": 9, "aliases": {"stable": 1}}]
    assert back == {}
    [refused] = [outcome for outcome, _ in written("policy") if outcome != "ok"]
    assert refused.startswith("invalid: digits/serving.toml: max_batch_size")
    assert server.terminate() == 0


def test_a_full_disk_loses_lines_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    with full_disk():
        for _ in range(3):
            log.write({"what": "load" * 10})
    log.close()
    assert caplog.text.count("--audit-log cannot be written") == 1


def test_a_file_that_cannot_be_written_is_one_line(repository: Path, tmp_path: Path) -> None:
    line = one_line(convoy("serve", repository, "--audit-log", tmp_path / "none" / "audit"))
    assert line == f"convoy: --audit-log '{tmp_path}/none/audit': No such file or directory"
