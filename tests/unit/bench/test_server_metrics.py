"""Quantiles of a histogram scraped from `/metrics`."""

from service.bench.server_metrics import quantile


def test_a_quantile_of_buckets_is_prometheus_own() -> None:
    buckets = [(1.0, 0.0), (2.0, 10.0), (4.0, 20.0), (float("inf"), 20.0)]
    assert [quantile(buckets, q) for q in (0.25, 0.5, 0.75, 1.0)] == [1.5, 2.0, 3.0, 4.0]
    assert quantile([(1.0, 0.0), (float("inf"), 0.0)], 0.5) == 0.0
