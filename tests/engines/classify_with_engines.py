"""The examples in deploy/jobs, each on a cluster of this machine, of which a worker is killed midway."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow.dataset
import pytest

from tests.engines.conftest import BROKEN, PICTURES, Pictures

ROOT = Path(__file__).parents[2]
SPARK_SUBMIT = Path(sys.prefix) / "bin" / "spark-submit"
COMMANDS = {
    "ray": [sys.executable],
    "spark": [SPARK_SUBMIT, "--master", "local[2,4]"],  # two Python workers; a task may fail three times
    "dask": [sys.executable],
}
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1", "RAY_USAGE_STATS_ENABLED": "0",
}  # fmt: skip

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts an example, and ends what is left of it."""
    started: list[psutil.Process] = []

    def start(engine: str, *arguments: Path) -> "subprocess.Popen[bytes]":
        command = [*COMMANDS[engine], ROOT / "deploy" / "jobs" / engine / "classify.py", *arguments]
        with (tmp_path / "log").open("wb") as log:
            driver = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env={**os.environ, **ENVIRONMENT})
        started.append(psutil.Process(driver.pid))
        return driver

    yield start
    for driver in started:
        if driver.is_running():
            for process in [driver, *driver.children(recursive=True)]:
                process.kill()


def worker_of(driver: "subprocess.Popen[bytes]", rows: Path) -> psutil.Process:
    """Waits for the first rows; a process that holds a model then."""
    while True:
        assert driver.poll() is None, "it has ended without rows"
        if any(rows.rglob("*.parquet")):
            for process in psutil.Process(driver.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                    is_program = any(word.endswith("classify.py") for word in process.cmdline())  # Spark's is a child, too
                    if not is_program and "onnxruntime" in Path(f"/proc/{process.pid}/maps").read_text():
                        return process
        time.sleep(0.02)


@pytest.mark.parametrize("engine", COMMANDS)
def test_every_picture_has_one_row_though_a_worker_is_killed(
    engine: str, pictures: Pictures, model_file: Path, tmp_path: Path, start: Start
) -> None:
    driver = start(engine, pictures.list, model_file, tmp_path / "rows")
    worker_of(driver, tmp_path / "rows").kill()
    assert driver.poll() is None, "it was killed midway"
    assert driver.wait() == 0, (tmp_path / "log").read_text()[-20_000:]
    rows = pyarrow.dataset.dataset(tmp_path / "rows", format="parquet").to_table().to_pylist()
    assert len(rows) == PICTURES
    assert {row["path"]: row["label"] for row in rows} == pictures.labels
    assert {Path(row["path"]).name for row in rows if row["error"]} == set(BROKEN)
    assert all((row["error"] is None) == (0 < (row["probability"] or 0) <= 1) for row in rows)
