"""Prometheus' own linter on what a real server exposes."""

import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest

from export.data import Dataset
from service.client import CallFailed, Client
from tests.conftest import Serve

pytestmark = pytest.mark.system


def test_promtool_finds_nothing_to_say(repository: Path, serve: Serve, digits: Dataset) -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None, "promtool is not installed: apt-get install prometheus"
    server = serve(repository)
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        client.classify([digits.test.encoded(0)], "digits")
        with pytest.raises(CallFailed):
            client.classify([b"nonsense"], "digits")
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics", timeout=10) as response:
        exposed = response.read()
    assert b"convoy_phase_seconds_bucket" in exposed
    checked = subprocess.run([promtool, "check", "metrics"], input=exposed, capture_output=True, timeout=60, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
