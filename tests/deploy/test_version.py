"""The version stands in pyproject.toml; `make version` writes it where Helm, kustomize and docker need it."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.deploy import kit

VERSION: str = tomllib.loads((kit.ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize("name", kit.RENDERINGS)
def test_images_are_of_this_version(name: str) -> None:
    for _, container in kit.convoy_containers(kit.render(name)):
        assert container["image"].partition(":")[2].removesuffix("-cuda") == VERSION


def test_the_newest_entry_of_the_changelog_is_of_this_version() -> None:
    newest = re.search(r"^## (\S+)", (kit.ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == VERSION


def test_another_version_is_written_everywhere(tmp_path: Path) -> None:
    shutil.copytree(kit.DEPLOY, tmp_path / "deploy", symlinks=True)
    shutil.copytree(kit.ROOT / ".ci", tmp_path / ".ci")
    project = (kit.ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(project.replace(f'version = "{VERSION}"', 'version = "7.8.9"'))

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(tmp_path / ".ci" / "version.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    stale = run("--check")
    assert stale.returncode == 1
    assert "not of version 7.8.9: deploy/Dockerfile" in stale.stderr
    assert run().returncode == 0
    assert run("--check").returncode == 0
    chart = yaml.safe_load((tmp_path / "deploy" / "chart" / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"], chart["apiVersion"]) == ("7.8.9", "7.8.9", "v2")
    for overlay, tag in (
        ("overlays/cpu", "7.8.9"),
        ("overlays/gpu", "7.8.9-cuda"),
        ("overlays/kserve", "7.8.9"),
        ("jobs/train", "7.8.9"),
        ("jobs/classify", "7.8.9"),
    ):
        images = [container["image"] for _, container in kit.convoy_containers(kit.kustomize(tmp_path / "deploy" / overlay))]
        assert images
        assert {image.partition(":")[2] for image in images} == {tag}
    assert re.findall(r"^ARG VERSION=(.*)", (tmp_path / "deploy" / "Dockerfile").read_text(), re.MULTILINE) == ["7.8.9"]


def test_an_image_of_your_own_takes_the_place_of_the_kits(tmp_path: Path) -> None:
    """As deploy/README.md says; the kit's image is named without a registry."""
    shutil.copytree(kit.DEPLOY, tmp_path / "deploy", symlinks=True)
    for overlay in ("overlays/cpu", "overlays/gpu", "overlays/kserve"):
        kustomization = tmp_path / "deploy" / overlay / "kustomization.yaml"
        kustomization.write_text(
            kustomization.read_text() + "images:\n  - name: convoy\n    newName: registry.example.com/convoy\n    newTag: mine\n"
        )
        images = {container["image"] for _, container in kit.convoy_containers(kit.kustomize(kustomization.parent))}
        assert images == {"registry.example.com/convoy:mine"}
