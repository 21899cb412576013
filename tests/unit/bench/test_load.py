"""A load is divided between processes, and what they measured adds up."""

import pytest

from service.bench.load import Load, Outcome
from service.bench.report import summary


def test_a_load_is_shared_out_whole() -> None:
    load = Load(target="", requests=(b"",), seconds=1, concurrency=10, connections=3, processes=4, rate=8)
    shares = [load.share(index) for index in range(4)]
    assert [share.concurrency for share in shares] == [3, 3, 2, 2]
    assert [share.connections for share in shares] == [1, 1, 1, 1]
    assert sum(share.rate for share in shares) == 8
    assert len({share.seed for share in shares}) == 4


def test_what_processes_measured_adds_up() -> None:
    parts = [Outcome() for _ in range(2)]
    for part, latency in zip(parts, (1000, 3000), strict=True):
        part.seconds = 2.0
        for _ in range(100):
            part.answered.record_value(latency)
            part.codes["OK"] += 1
            part.by_second[0] += 1
    whole = Outcome()
    for part in parts:
        whole.add(part.pack())
    found = summary(Load(target="", requests=(b"",), seconds=2, processes=2, concurrency=2), 1, whole, None)
    assert found["requests_per_second"] == 100
    assert found["latency_ms"]["p50"] == pytest.approx(1.0, rel=0.01)
    assert found["latency_ms"]["p90"] == pytest.approx(3.0, rel=0.01)
