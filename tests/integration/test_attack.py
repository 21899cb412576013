"""The campaign of attacks and the soak: a short form in `make test-system`, the long ones in `make test-slow`."""

import time
from pathlib import Path

import pytest

from tests import refusals
from tests.attack import campaign, soak
from tests.attack.polite import PoliteClient
from tests.attack.target import Held, held, serving, worker_processes

SHORT_SECONDS = 0.2
LONG_SECONDS = 15.0
GROWTH_MB = 80.0
"""What all attacks together may leave: caches, pools of threads, what malloc keeps."""

MAX_THREADS = 130
"""Of a process: its pools of threads, grown to their size."""

PATIENCE = 6.0
"""What is slow here, on a machine that runs other tests, is no failure; the campaign says how slow."""

BEYOND_PUBLIC = {"rapid reset", "stalled messages"}
"""A flood of calls that are reset makes grpcio's own asyncio server cancel calls of other clients."""


def attacked(folder: Path, model_file: Path, transport: str, workers: int, seconds: float) -> None:
    """Runs all attacks on one server: it answers every polite call and probe in between, and gives back what it took."""
    repository = refusals.make_repository(folder / "attacked", model_file)
    options = ("--transport", transport, "--workers", str(workers), "--log-level", "error")
    with serving(repository, folder, *options) as target:
        fresh = held(target.pid)
        campaign.warm_up(target)
        before, serving_processes = held(target.pid), worker_processes(target.pid)
        with PoliteClient(target.grpc_port, target.http_port, PATIENCE) as polite:
            for attack, send in campaign.ATTACKS.items():
                if transport == "fast" or attack not in BEYOND_PUBLIC:
                    send(target, time.monotonic() + seconds)
        allowed = Held(before.rss_mb + GROWTH_MB, workers * MAX_THREADS, fresh.files + workers * campaign.FEW_FILES)
        after = campaign.settled(target.pid, allowed)
        assert target.log.read_text().count("Traceback") == 0, target.log.read_text()
        assert worker_processes(target.pid) == serving_processes, "none has died and been replaced"
    assert not polite.seen.failures
    assert not polite.seen.probe_failures
    assert len(polite.seen.milliseconds) > 10
    assert len(polite.seen.probe_milliseconds) > 2
    assert after.rss_mb <= allowed.rss_mb + campaign.SETTLED_MB
    assert after.threads <= allowed.threads
    assert after.files <= allowed.files


@pytest.mark.system
@pytest.mark.timeout(400)
def test_a_server_under_every_attack_answers_polite_clients_and_probes_and_gives_everything_back(
    tmp_path: Path, model_file: Path
) -> None:
    attacked(tmp_path, model_file, "fast", 1, SHORT_SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("transport", "workers"), [("fast", 1), ("fast", 2), ("public", 1)])
def test_a_server_stands_every_attack_for_longer(tmp_path: Path, model_file: Path, transport: str, workers: int) -> None:
    attacked(tmp_path, model_file, transport, workers, LONG_SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("workers", [1, 2])
def test_memory_is_flat_under_mixed_load_with_reloads(tmp_path: Path, model_file: Path, workers: int) -> None:
    repository = tmp_path / "models"
    (repository / "digits" / "1").mkdir(parents=True)
    (repository / "digits" / "1" / "model.onnx").write_bytes(model_file.read_bytes())
    with serving(repository, tmp_path, "--workers", str(workers), "--log-level", "error") as target:
        rows, outcomes = soak.soak(target, 600, print)
    assert not soak.verdict(rows, outcomes)
