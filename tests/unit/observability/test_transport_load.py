"""How busy the transport's thread is, by the kernel's count, and when the log says that it is the limit."""

import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.observability.transport_load import Load, ThreadTime, TransportMetrics, hint, idle_seconds
from tests.integration.test_repository import eventually


def test_a_thread_that_computes_is_counted_and_one_that_waits_is_not() -> None:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    computing, waiting = threading.Thread(target=compute), threading.Thread(target=stop.wait)
    busy, idle = ThreadTime(lambda: computing.native_id), ThreadTime(lambda: waiting.native_id)
    assert (busy(), idle()) == (0.0, 0.0), "before they start"
    for each in (computing, waiting):
        each.start()
    eventually(lambda: busy() > 0.1)
    assert idle() < 0.05
    last = busy()
    stop.set()
    computing.join()
    waiting.join()
    eventually(lambda: not Path(f"/proc/self/task/{computing.native_id}").exists())
    assert busy() >= last, "a counter never falls"


def test_the_counter_has_the_worker() -> None:
    registry = CollectorRegistry()
    registry.register(TransportMetrics(2, lambda: 1.5))
    assert registry.get_sample_value("convoy_transport_busy_seconds_total", {"worker": "2"}) == 1.5


@pytest.mark.parametrize(
    ("load", "cpus", "hinted"),
    [
        (Load(transport=0.97, process=1.2, idle=2.5), 4, True),
        (Load(transport=0.97, process=1.2, idle=0.3), 4, False),  # other programs have the CPUs
        (Load(transport=0.97, process=0.98, idle=30.0), 1, False),  # a quota of one CPU on a machine of many
        (Load(transport=0.6, process=0.8, idle=3.0), 4, False),  # it waits for work
        (Load(transport=0.95, process=3.9, idle=0.1), 4, False),  # the models have the CPUs
    ],
)
def test_more_workers_are_proposed_where_the_thread_is_the_limit_and_cpus_are_idle(load: Load, cpus: int, *, hinted: bool) -> None:
    said = hint(load, cpus)
    assert bool(said) == hinted
    assert not hinted or "97% of the last 30 s, while 2.5 of 4 CPUs were idle. --workers 4 uses them" in said


def test_load_is_what_was_used_in_the_time_between() -> None:
    assert Load(10.0, 30.0, 70.0).since(Load(1.0, 10.0, 60.0), 10.0) == Load(0.9, 2.0, 1.0)


def test_idle_time_is_that_of_all_cpus_with_the_wait_for_disks(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  10 0 20 300 100 0 0 0 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    assert idle_seconds(tmp_path / "stat") == pytest.approx(4.0)
    assert idle_seconds(tmp_path / "none") == 0.0
    assert idle_seconds() > 0.0
