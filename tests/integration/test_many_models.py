"""Many small models: what a server holds grows neither by threads nor by an arena for each of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_LOADS = """
import json, os, shutil, sys, threading, time
from pathlib import Path
from prometheus_client import CollectorRegistry
from service.engine.repository import Repository
from service.process.malloc import limit_freed_memory
from service.observability.metrics import Metrics

limit_freed_memory()
folder, source = Path(sys.argv[1]), Path(sys.argv[2])
metrics = Metrics(CollectorRegistry())
repository = Repository(folder, "cpu", metrics, cpus=4)

def say():
    while any(thread.name.startswith("close-") for thread in threading.enumerate()):
        time.sleep(0.01)
    status = Path("/proc/self/status").read_text()
    held = [int(status.split(f"{name}:")[1].split()[0]) for name in ("VmRSS", "Threads")]
    families = {family.name: family.samples for family in metrics.registry.collect()}
    ort = [sample.value for sample in families["convoy_ort_threads"]]
    print(json.dumps([len(repository.served), held[0] / 1024, held[1], ort]), flush=True)

def add(numbers):
    for number in numbers:
        (folder / f"m{number}" / "1").mkdir(parents=True)
        shutil.copy(source, folder / f"m{number}" / "1" / "model.onnx")
    repository.scan()
    say()

add(range(20))
add(range(20, 40))
for number in range(40):
    repository.unload(f"m{number}")
say()
os._exit(0)
"""


class Held(NamedTuple):
    models: int
    resident_mb: float
    threads: int
    ort_threads: list[float]


def test_threads_and_memory_do_not_grow_by_model(tmp_path: Path, model_file: Path) -> None:
    """Of 20 models the first 16 may have threads of their own; each of the 20 that come then costs its weights and figures alone.

    Without that, one took 14 MB and four threads.
    """
    command = [sys.executable, "-c", _LOADS, str(tmp_path), str(model_file)]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()
    twenty, forty, none = (Held(*json.loads(line)) for line in lines)
    assert [held.models for held in (twenty, forty, none)] == [20, 40, 0]
    assert sorted(set(forty.ort_threads)) == [1, 4]
    assert forty.ort_threads.count(4) <= 18, "one or two may have looked large on a busy machine"
    assert forty.threads <= twenty.threads + 2 * 3
    assert forty.resident_mb < twenty.resident_mb + 20 * 4
    assert none.ort_threads == []
    assert none.threads < twenty.threads - 30, "closed sessions end their threads"
    assert none.resident_mb < forty.resident_mb - 10
