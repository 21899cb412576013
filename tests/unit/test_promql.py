"""The dashboard and the rules name what the code has, and nothing else."""

import re

import pytest
from prometheus_client import CollectorRegistry

from service.http.server import INFER, HttpMetrics
from service.observability.metrics import Metrics
from service.requests.phases import Phases
from tests.promql import DEPLOY, NO_GPU_HERE, alerts, panels, rules, selectors, variables

OF_THE_TARGET = {"namespace", "pod", "job", "instance"}
"""Labels that Prometheus gives to whatever it scrapes from a pod."""

PROMISED = {
    "grpc_server_started_total", "grpc_server_handled_total", "grpc_server_handling_seconds_bucket", "convoy_phase_seconds_bucket",
    "convoy_batch_items_bucket", "convoy_items_total", "convoy_queue_items", "convoy_inflight_requests", "convoy_rejections_total",
    "convoy_predictions_total", "convoy_confidence_bucket", "convoy_model_info", "convoy_model_load_seconds",
    "convoy_model_loads_total", "convoy_ort_threads", "convoy_build_info", "process_cpu_seconds_total",
    "process_resident_memory_bytes", "process_start_time_seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """The labels of every metric that the code exposes or the rules record, by its name."""
    metrics = Metrics(CollectorRegistry())
    metrics.transport_chosen("fast")
    metrics.watch_transport(1, lambda: 0.0)
    method = metrics.rpc_method("unary", "convoy.v1.Classifier", "Classify")
    method.started()
    method.handled("OK", 0.001, None)
    served = metrics.model_loaded("digits", "1", ["0", "1"], probabilities=True)
    served.serving(1024, 64, lambda: 0, fell_back=False)
    served.batch(1, 0.001)
    served.answered(Phases(0.001, 0.001, 0.001), 0.001, [[(1, 0.9)]])
    metrics.watch_model("digits", lambda: 0, 1)
    metrics.model_serving("digits", "1", "cpu", "fp32", "digest", "")
    metrics.load_ended("digits", "ready", 0.1)
    metrics.watch_failures(lambda: [("digits", "2", "invalid")])
    HttpMetrics(metrics.registry).answered("POST", INFER, "200", 0.01)
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    for rule in rules():
        if "record" in rule:
            found[rule["record"]] = {"model", "version", *(["label"] if "predictions" in rule["record"] else [])}
    found |= {"up": set(), "convoy_workers": set(), "convoy_workers_ready": set(), "convoy_worker_restarts_total": set()}
    found["convoy_worker_connections"] = {"worker"}
    return found


def expressions() -> list[tuple[str, str]]:
    chosen = [(name, selector) for name, (selector, _) in variables().items()]
    return [*panels().items(), *chosen, *((rule.get("alert") or rule["record"], rule["expr"]) for rule in rules())]


def test_every_promised_metric_exists(labels: dict[str, set[str]]) -> None:
    assert set(labels) >= PROMISED


@pytest.mark.parametrize(("where", "expr"), expressions())
def test_every_selected_metric_and_label_exists(where: str, expr: str, labels: dict[str, set[str]]) -> None:
    asked = selectors(expr)
    assert asked
    for selector in asked:
        if selector.name in NO_GPU_HERE:
            assert where.startswith("GPU ")
            continue
        assert selector.name in labels, f"{where}: there is no metric {selector.name}"
        for matcher in selector.matchers.matchers:
            if matcher.name == "http_route":
                assert re.fullmatch(matcher.value, INFER)
            assert matcher.name in labels[selector.name] | OF_THE_TARGET, f"{where}: {selector.name} has no label {matcher.name}"


def test_every_metric_of_convoy_is_on_the_dashboard(labels: dict[str, set[str]]) -> None:
    shown = {selector.name for expr in panels().values() for selector in selectors(expr)}
    shown |= {selector.name for rule in rules() if rule.get("record") in shown for selector in selectors(rule["expr"])}
    of_convoy = {family(name) for name in labels if name.startswith("convoy_")}
    assert of_convoy - {family(name or "") for name in shown} == set()


def family(sample: str) -> str:
    return re.sub(r"_(bucket|sum|count|created|total)$", "", sample)


def test_alerts_and_runbook_entries_match() -> None:
    runbook = (DEPLOY / "RUNBOOK.md").read_text()
    assert set(re.findall(r"^## (\w+)$", runbook, re.MULTILINE)) == {alert["alert"] for alert in alerts()}
    for alert in alerts():
        assert alert["annotations"]["runbook_url"] == f"deploy/RUNBOOK.md#{alert['alert'].lower()}"
        assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert alert["labels"]["severity"] in {"page", "ticket"}
    titles = {name.rsplit(" ", 1)[0] for name in panels()}
    for named in re.findall(r"\*\*(.+?)\*\*", runbook):
        assert named == "Targets" or any(title.startswith(named) for title in titles), f"the runbook names a panel {named!r}"
