"""Versions that come and go while requests are in hand, for long."""

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from export.data.datasets import Dataset
from service.client import CallFailed, Client
from tests.conftest import Serve, put
from tests.integration.test_edges import samples
from tests.integration.test_repository import BROKEN

SWAPS = 20


def put_labelled(model_file: Path, repository: Path, version: int, spoil: Callable[[Path], object] = lambda path: None) -> None:
    """Puts a version there whose labels say which it is, so that no other's answer can be taken for its own."""
    model = onnx.load(model_file)
    contract = json.loads(model.metadata_props[0].value)
    contract["labels"] = [f"{version}/{label}" for label in contract["labels"]]
    model.metadata_props[0].value = json.dumps(contract)
    staging = repository.parent / f"version-{version}.onnx"
    onnx.save(model, staging)
    spoil(staging)  # before it can be noticed
    put(staging, repository, "digits", version)


def test_twenty_swaps_under_load_with_broken_versions_between_them_fail_no_request(
    tmp_path: Path, model_file: Path, serve: Serve, digits: Dataset
) -> None:
    repository = tmp_path / "models"
    put_labelled(model_file, repository, 1)
    server = serve(repository)
    stop = threading.Event()
    answers: Counter[tuple[str, str]] = Counter()
    failures: list[CallFailed] = []

    def load(pixels: bool) -> None:
        image = digits.test.pixels[0] if pixels else digits.test.encoded(0)
        with Client(f"127.0.0.1:{server.grpc_port}") as client:
            while not stop.is_set():
                try:
                    answer = client.classify([image] * 3, "digits")
                except CallFailed as error:
                    failures.append(error)
                    continue
                for result in answer.results:
                    answers[answer.version, result[0].label] += 1

    clients = [threading.Thread(target=load, args=(index % 2 == 0,)) for index in range(3)]
    for thread in clients:
        thread.start()
    names = list(BROKEN)
    good = [1]
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        for swap in range(SWAPS):
            bad, best = 2 * swap + 2, 2 * swap + 3
            name = names[swap % len(names)]
            put_labelled(model_file, repository, bad, BROKEN[name][0])
            server._repository.scan()
            reasons = {entry.version: entry.reason for entry in server._repository.index() if entry.state == "UNAVAILABLE"}
            assert BROKEN[name][2] in reasons[bad]
            assert client.classify([digits.test.encoded(0)], "digits").version == str(good[-1]), "the old version stays"
            put_labelled(model_file, repository, best)
            server._repository.scan()
            good.append(best)
            assert client.classify([digits.test.encoded(0)], "digits").version == str(best)
    stop.set()
    for thread in clients:
        thread.join()
    assert failures == []
    assert len({label.split("/")[1] for _, label in answers}) == 1, "the same picture has the same answer"
    assert all(label.startswith(f"{version}/") for version, label in answers), "no answer is half of one version, half of another"
    assert {int(version) for version, _ in answers} <= set(good)
    found = samples(server)
    assert found["convoy_model_loads_total", "digits", "ready"] == SWAPS + 1
    bad_loads = [
        value for key, value in found.items() if key[0] == "convoy_model_loads_total" and key[2] in ("invalid", "golden_mismatch")
    ]
    assert sum(bad_loads) == SWAPS
    assert len([key for key in found if key[0] == "convoy_model_info"]) == 1


SOAK = """
import gc, sys, time
from pathlib import Path
from prometheus_client import CollectorRegistry
from service.engine.classifier import Classifier
from service.engine.query import Item, Query
from service.observability.metrics import Metrics
from service.engine.repository import Repository

def resident_kilobytes():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])

metrics = Metrics(CollectorRegistry())
repository = Repository(Path(sys.argv[1]), "cpu", metrics)
repository.start()
gc.collect(); gc.freeze()  # as the server does
classifier = Classifier(repository, metrics)
answers = []
for cycle in range(50):
    for _ in range(20):
        classifier.classify(Query("digits", [Item(bytes(784), False)] * 8), answers.append)
        while classifier.pump() == float("-inf"):
            pass
    repository.wait_until_idle(10)
    assert len(answers) == 20 and not any(isinstance(answer, Exception) for answer in answers), answers
    del answers[:]
    repository.unload("digits")
    time.sleep(0.05)  # its thread ends by itself
    print(resident_kilobytes())
    repository.load("digits")
repository.stop()
classifier.close()
"""


@pytest.mark.slow
def test_fifty_cycles_of_load_and_unload_leave_nothing_behind(repository: Path) -> None:
    result = subprocess.run([sys.executable, "-c", SOAK, str(repository)], capture_output=True, text=True, timeout=170, check=False)
    assert result.returncode == 0, result.stderr
    resident = [int(line) for line in result.stdout.split()]
    assert len(resident) == 50
    # The first cycles fill the allocators' own stores.
    assert max(resident[40:]) - max(resident[5:15]) < 20_000, resident
