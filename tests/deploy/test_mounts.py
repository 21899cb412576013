"""The server on folders as the kubelet lays them out: every entry a link into `..data`, which is a link itself and is swapped."""

import os
from pathlib import Path

import pytest

from export.data.datasets import Dataset
from service.client import CallFailed, Client
from tests.conftest import Serve, convoy
from tests.integration.test_repository import eventually


def mount(folder: Path, generation: int, content: dict[str, bytes]) -> None:
    """Writes a ConfigMap's files as the kubelet does: into a folder of its own, then one atomic swap of `..data`."""
    data = folder / f"..{generation}"
    for name, value in content.items():
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value)
    fresh = folder / "..data_tmp"
    fresh.symlink_to(data.name)
    fresh.replace(folder / "..data")
    for top in {Path(name).parts[0] for name in content}:
        if not (folder / top).is_symlink():
            (folder / top).symlink_to(Path("..data") / top)


def accepts(client: Client, images: list[bytes]) -> bool:
    try:
        return len(client.classify(images, "digits").results) == len(images)
    except CallFailed as error:
        if error.code != "INVALID_ARGUMENT":
            raise
        return False


def test_a_policy_beside_a_read_only_repository_is_obeyed_and_followed(
    tmp_path: Path, model_file: Path, serve: Serve, digits: Dataset
) -> None:
    models, policies = tmp_path / "models", tmp_path / "policies"
    models.mkdir()
    policies.mkdir()
    mount(models, 1, {"digits/1/model.onnx": model_file.read_bytes(), "digits/serving.toml": b"max_request_items = 7\n"})
    mount(policies, 1, {"digits.toml": b"max_request_items = 1\n", "another.toml": b"for a model that is not here"})
    server = serve(models, policies=policies)
    two = [digits.test.encoded(0), digits.test.encoded(1)]
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        with pytest.raises(CallFailed, match="INVALID_ARGUMENT"):
            client.classify(two, "digits")
        mount(policies, 2, {"digits.toml": b"max_request_items = 2\n"})
        eventually(lambda: accepts(client, two))


def test_a_folder_of_policies_that_is_not_there_is_said_at_start(repository: Path, tmp_path: Path) -> None:
    result = convoy("serve", repository, "--grpc-port", "0", "--http-port", "0", "--policies", tmp_path / "nowhere")
    assert result.returncode == 2
    assert result.stderr.strip().endswith(f"--policies {os.fspath(tmp_path / 'nowhere')!r}: no such folder")
