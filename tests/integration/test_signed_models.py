"""`--require-signatures`: what is not signed is neither served nor parsed, and who signed what is served is told."""

import http.client
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from export.data.datasets import Dataset
from service.client import Client
from service.engine import message_limits, version_files
from service.errors import FilesChanged
from service.model import model_files
from service.model.model_files import read_model
from service.model.signing import SIGNATURE_FILE, fingerprint, write_signature
from service.model.trusted_keys import TrustedKeys
from service.server import Server
from tests.conftest import Serve, ServerProcess, Spawn, convoy, put
from tests.integration.test_repository import eventually


@pytest.fixture
def transport_name() -> str:
    """What is loaded is nothing to a transport: once is enough."""
    return "fast"


KEY = ec.generate_private_key(ec.SECP256R1())
SIGNER = f"sha256:{fingerprint(KEY.public_key())}"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with the public key of KEY."""
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "alice.pem").write_bytes(
        KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return folder


def index(server: Server | ServerProcess) -> dict[tuple[str, str], tuple[str, str]]:
    """State and reason of each version."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    connection.request("POST", "/v2/repository/index", "{}")
    entries = json.loads(connection.getresponse().read())
    connection.close()
    return {(entry["name"], entry["version"]): (entry["state"], entry["reason"]) for entry in entries}


def metrics(server: Server | ServerProcess) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


@pytest.mark.parametrize("workers", ["1", "2"])
def test_only_what_is_signed_is_served(
    repository: Path, model_file: Path, spawn: Spawn, digits: Dataset, keys: Path, workers: str
) -> None:
    write_signature(repository / "digits" / "1", KEY)
    put(model_file, repository, "unsigned", 1)
    put(model_file, repository, "stolen", 1)
    write_signature(repository / "stolen" / "1", ec.generate_private_key(ec.SECP384R1()))
    server = spawn(repository, "--require-signatures", str(keys), "--workers", workers)
    assert index(server) == {
        ("digits", "1"): ("READY", ""),
        ("stolen", "1"): (
            "UNAVAILABLE", "its signature is by none of the keys of --require-signatures, or the statement in it was changed",
        ),
        ("unsigned", "1"): ("UNAVAILABLE", "it is not signed: there is no model.sig"),
    }  # fmt: skip
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        assert client.model("digits").signer == SIGNER
        assert client.classify([digits.test.encoded(0)], model="digits").version == "1"
    [line] = [line for line in metrics(server).splitlines() if line.startswith("convoy_model_info{")]
    assert f'signer="{SIGNER}"' in line
    assert f"model digits version 1 is signed by alice.pem ({SIGNER})" in server.log.read_text()
    assert server.terminate() == 0


def test_without_the_setting_nobody_is_named(repository: Path, serve: Serve) -> None:
    write_signature(repository / "digits" / "1", KEY)
    server = serve(repository)
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        assert client.model("digits").signer == ""
    assert 'signer=""' in metrics(server)


def test_a_version_is_looked_at_again_when_anything_in_its_folder_changes(
    repository: Path, model_file: Path, serve: Serve, keys: Path
) -> None:
    server = serve(repository, require_signatures=keys)
    first, second = repository / "digits" / "1", repository / "digits" / "2"
    assert index(server)["digits", "1"][0] == "UNAVAILABLE"
    write_signature(first, KEY)
    eventually(lambda: index(server)["digits", "1"] == ("READY", ""))
    shutil.copytree(first, repository / "digits" / ".new")
    (repository / "digits" / ".new" / "extra.txt").write_text("x")
    (repository / "digits" / ".new").rename(second)
    eventually(lambda: "'extra.txt' is an extra file" in index(server).get(("digits", "2"), ("", ""))[1])
    assert index(server)["digits", "1"][0] == "READY", "the version before is still served"
    (second / "extra.txt").unlink()
    eventually(lambda: index(server).get(("digits", "2")) == ("READY", ""))


@pytest.mark.parametrize("target", ["x" * 300, "."], ids=["too long", "to a folder"])
def test_a_link_in_one_version_keeps_no_other_from_being_served(
    repository: Path, model_file: Path, serve: Serve, keys: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(version_files, "SETTLE_SECONDS", 0.0)
    put(model_file, repository, "digits", 2)
    for version in ("1", "2"):
        write_signature(repository / "digits" / version, KEY)
    (repository / "digits" / "1" / "link").symlink_to(target)
    (repository / "digits" / "serving.toml").write_text("versions = 'all'")
    found = index(serve(repository, require_signatures=keys))
    assert found["digits", "2"] == ("READY", "")
    assert found["digits", "1"][0] == "UNAVAILABLE"
    assert "'link'" in found["digits", "1"][1]


def test_nothing_of_an_unsigned_folder_is_parsed(
    repository: Path, serve: Serve, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[Path] = []

    def spied(module: Any, name: str) -> None:
        function = getattr(module, name)

        def spy(source: Any, *arguments: Any, **options: Any) -> Any:
            parsed.append(source)
            return function(source, *arguments, **options)

        monkeypatch.setattr(module, name, spy)

    spied(message_limits, "input_item_bytes")
    spied(model_files, "_external_tensors")
    spied(model_files, "read_outline")
    spied(version_files, "weights_files")
    server = serve(repository, require_signatures=keys)
    assert index(server)["digits", "1"] == ("UNAVAILABLE", "it is not signed: there is no model.sig")
    assert parsed == []
    write_signature(repository / "digits" / "1", KEY)
    server.control.load("digits")
    assert len(parsed) == 1


def test_what_changes_after_its_signature_was_checked_is_not_loaded(repository: Path, keys: Path) -> None:
    folder = repository / "digits" / "1"
    write_signature(folder, KEY)
    signed = TrustedKeys.read(keys).verify(folder)
    assert read_model(folder / "model.onnx", signed=signed).signer == SIGNER
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(FilesChanged, match=r"'model\.onnx' has changed since its signature was checked"):
        read_model(folder / "model.onnx", signed=signed)


def test_keys_that_cannot_be_read_are_one_line(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("nothing")
    for path, message in ((tmp_path / "none", "No such file"), (tmp_path / "key.pem", "holds no key")):
        for workers in ("1", "2"):
            done = convoy("serve", repository, "--require-signatures", path, "--workers", workers)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
            assert message in done.stderr
    assert not (repository / "digits" / "1" / SIGNATURE_FILE).exists()


def test_a_triton_version_is_signed_as_any_other_and_its_config_is_a_setting(
    repository: Path, serve: Serve, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version_files, "SETTLE_SECONDS", 0.0)
    version = repository / "digits" / "1"
    (version / "model.onnx").rename(version / "digits.onnx")
    config = repository / "digits" / "config.pbtxt"
    config.write_text("default_model_filename: 'digits.onnx' max_batch_size: 8")
    private = serialization.PrivateFormat.PKCS8
    key = tmp_path / "alice.key"
    key.write_bytes(KEY.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()))
    assert convoy("sign", version, "--key", key).returncode == 0
    server = serve(repository, require_signatures=keys)
    assert index(server) == {("digits", "1"): ("READY", "")}
    config.write_text("default_model_filename: 'other.onnx' max_batch_size: 8")
    (version / "other.onnx").write_bytes((version / "digits.onnx").read_bytes())
    eventually(lambda: "'other.onnx' is an extra file" in index(server)["digits", "1"][1])
