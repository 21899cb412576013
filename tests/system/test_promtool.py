"""Prometheus' own linter on what a real server exposes, and the unit tests of the rules."""

import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml

from export.data.datasets import Dataset
from service.client import CallFailed, Client
from tests.conftest import Serve
from tests.promql import RULES, alerts

pytestmark = pytest.mark.system


def promtool(*arguments: str, given: bytes = b"") -> tuple[int, str]:
    """Exit code and output."""
    program = shutil.which("promtool")
    assert program is not None, "promtool is not installed: apt-get install prometheus"
    done = subprocess.run([program, *arguments], input=given, capture_output=True, timeout=170, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()


def test_promtool_finds_nothing_to_say(repository: Path, serve: Serve, digits: Dataset) -> None:
    server = serve(repository)
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        client.classify([digits.test.encoded(0)], "digits")
        with pytest.raises(CallFailed):
            client.classify([b"nonsense"], "digits")
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics", timeout=10) as response:
        exposed = response.read()
    assert b"convoy_phase_seconds_bucket" in exposed
    assert promtool("check", "metrics", given=exposed) == (0, "")


def test_the_rules_do_what_they_say() -> None:
    code, said = promtool("test", "rules", str(RULES.with_name("convoy_test.yaml")))
    assert code == 0, said


def test_each_alert_is_tested_to_fire_and_to_stay_quiet() -> None:
    tests = [
        test
        for group in yaml.safe_load(RULES.with_name("convoy_test.yaml").read_text())["tests"]
        for test in group["alert_rule_test"]
    ]
    fired = {(test["alertname"], alert["exp_labels"]["severity"]) for test in tests for alert in test["exp_alerts"]}
    assert fired == {(alert["alert"], alert["labels"]["severity"]) for alert in alerts()}
    assert {test["alertname"] for test in tests if not test["exp_alerts"]} >= {name for name, _ in fired}
