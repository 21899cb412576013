"""What `--workers auto` comes to, by what is known and measured; and the process that measures, where it fails."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from service.config import MAX_WORKERS, ServerConfig
from service.lifecycle import StopEvent
from service.workers import survey as surveying
from service.workers.survey import with_worker_count
from service.workers.worker_count import (
    LARGE_FILES_BYTES,
    Choice,
    MeasuredModel,
    Setting,
    Survey,
    choose,
    one_whatever_is_measured,
)

GIB, MIB = 2**30, 2**20
USUAL = Setting(
    cpus=4, shares_port=True, has_grpc_socket=False, has_quotas=False, provider="auto", largest=("big", LARGE_FILES_BYTES)
)
SMALL = MeasuredModel("digits version 1", "cpu", 0.0001, inline=True)
SLOW = MeasuredModel("r18 version 2", "cpu", 0.0098, inline=False)
ON_GPU = MeasuredModel("r18 version 2", "cuda", 0.0002, inline=True)


class Stop(StopEvent):
    """A stop event without signals."""

    def __init__(self) -> None:
        self._is_set = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)


def chosen(*models: MeasuredModel, cpus: int = 4, free_bytes: int = 8 * GIB, largest_messages: int = 100) -> Choice:
    return choose(Survey(models, 128 * MIB), cpus, free_bytes, largest_messages)


def test_usually_the_models_decide() -> None:
    assert one_whatever_is_measured(USUAL) is None
    assert one_whatever_is_measured(USUAL._replace(provider="cpu")) is None


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({"cpus": 1}, "one CPU"),
        ({"shares_port": False}, "share a port"),
        ({"has_grpc_socket": True}, "--grpc-socket"),
        ({"has_quotas": True}, "quotas of --auth"),
        ({"provider": "cuda"}, "--provider cuda"),
        ({"largest": ("big", LARGE_FILES_BYTES + MIB)}, "model big has 33 MiB"),
    ],
)
def test_what_workers_would_take_away_means_one(known: dict[str, Any], reason: str) -> None:
    choice = one_whatever_is_measured(USUAL._replace(**known))
    assert choice is not None
    assert choice.workers == 1
    assert reason in choice.reason


def test_small_models_get_a_worker_for_each_cpu() -> None:
    assert chosen(SMALL) == Choice(4, "model digits version 1 takes 0.1 ms a picture on one CPU; there are 4 CPUs")
    assert chosen(SMALL, SMALL, cpus=16).workers == 16
    assert chosen(SMALL, cpus=1000, free_bytes=1000 * GIB, largest_messages=1000).workers == MAX_WORKERS


@pytest.mark.parametrize("models", [(SLOW,), (SMALL, SLOW), (SLOW, SMALL)])
def test_one_slow_model_means_one_worker(models: tuple[MeasuredModel, ...]) -> None:
    assert chosen(*models) == Choice(1, "model r18 version 2 takes 9.8 ms a picture on one CPU: one process computes with all 4")


def test_no_model_or_one_on_a_device_means_one_worker() -> None:
    assert chosen() == Choice(1, "no model can be measured yet")
    assert chosen(SMALL, ON_GPU).workers == 1
    assert "computes with cuda" in chosen(SMALL, ON_GPU).reason


@pytest.mark.parametrize(
    ("free_bytes", "workers"), [(8 * GIB, 8), (1 * GIB, 4), (GIB - MIB, 3), (512 * MIB, 2), (100 * MIB, 1), (0, 1)]
)
def test_workers_take_half_of_the_free_memory_at_most(free_bytes: int, workers: int) -> None:
    choice = chosen(SMALL, cpus=8, free_bytes=free_bytes)
    assert choice.workers == workers
    assert ("a worker takes 128" in choice.reason) == (workers < 8)


def test_each_worker_has_room_for_a_largest_message() -> None:
    assert chosen(SMALL, largest_messages=3).workers == 3
    assert "--max-inflight-bytes" in chosen(SMALL, largest_messages=0).reason
    assert chosen(SMALL, largest_messages=0).workers == 1


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerConfig:
    monkeypatch.setattr(surveying, "cpu_budget", lambda: 2)
    return ServerConfig(repository=tmp_path, workers="auto")


@pytest.mark.parametrize(
    ("program", "seconds", "reason"),
    [
        ("raise SystemExit(3)", 30.0, "has ended early"),
        ("print('half a line', end=''); raise SystemExit(3)", 30.0, "has ended early"),
        ("import time; time.sleep(600)", 0.1, "takes longer than 0.1 s"),
    ],
)
def test_one_worker_where_nothing_can_be_measured(
    program: str,
    seconds: float,
    reason: str,
    config: ServerConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(surveying, "_PROGRAM", program)
    monkeypatch.setattr(surveying, "SURVEY_SECONDS", seconds)
    caplog.set_level("INFO")
    assert with_worker_count(config, Stop()) == config.model_copy(update={"workers": 1})
    [line] = caplog.messages
    assert line.startswith("--workers auto: 1 worker: the models could not be measured: ")
    assert reason in line


def test_a_server_that_is_to_stop_waits_for_no_measurement(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(surveying, "_PROGRAM", "import time; time.sleep(600)")
    stop, started = Stop(), time.monotonic()
    stop.set()
    assert with_worker_count(config, stop).workers == 1
    assert time.monotonic() - started < 30
    assert not caplog.messages


def test_quotas_of_a_group_are_found_before_anything_is_loaded(
    config: ServerConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    auth = tmp_path / "auth.toml"
    auth.write_text('[groups.all]\ninfer = ["*"]\nrequests_per_second = 5\n')
    assert with_worker_count(config.model_copy(update={"auth": auth}), Stop()).workers == 1
    assert "quotas" in caplog.messages[0]


def test_only_the_largest_version_of_a_model_counts(config: ServerConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for name, version, size_bytes in (("one", 1, MIB), ("one", 2, 40 * MIB), ("two", 1, MIB)):
        folder = tmp_path / name / str(version)
        folder.mkdir(parents=True)
        with (folder / "model.onnx").open("wb") as file:
            file.truncate(size_bytes)
    assert with_worker_count(config, Stop()).workers == 1
    assert "model one has 40 MiB" in caplog.messages[0]
