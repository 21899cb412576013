"""Writes the Grafana dashboard, `convoy.json`; with --check says whether it is fresh (exit code 1 if not).

Every expression in it is run against a real Prometheus that scrapes a real server, by tests/system/test_prometheus.py. The only
metrics that are not Convoy's or its rules' (deploy/rules/convoy.yaml) are those of NVIDIA's DCGM exporter, in the row GPU.
"""

import sys
from pathlib import Path
from string import ascii_uppercase

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models import prometheus as prometheus_model

OUTPUT = Path(__file__).with_suffix(".json")
SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")

POD = 'namespace=~"$namespace", pod=~"$pod"'
MODEL = f'{POD}, model=~"$model"'
VERSION = f'{MODEL}, version=~"$version"'
CALLS = f'{POD}, grpc_type="unary", grpc_method=~"Classify|ModelInfer"'
INFER = f'{POD}, http_route=~"/v2/models/.+/infer"'
RATE = "[$__rate_interval]"
PHASES = ("decode", "queue", "inference", "encode")
QUANTILES = (0.5, 0.9, 0.99)
WINDOWS = ("5m", "1h", "6h", "3d")
FAULTS = "INTERNAL|UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED"
HTTP_FAULTS = "429|500|503|504"
OF_CONVOY = "and on (namespace, job, pod, instance) convoy_build_info"  # every process has the metrics process_*

Panel = Builder[model.Panel]
Queries = dict[str, str]
"""Expressions by the legend of their lines."""


def query(expr: str, legend: str = "__auto", letter: str = "A") -> prometheus.Dataquery:
    """A query over the time that is shown; with exemplars, where it is of a histogram's buckets."""
    made = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(letter).range()
    return made.exemplar(True) if "_bucket{" in expr else made


def lines(title: str, unit: str, queries: Queries, *, about: str = "", width: int = 8, shares: bool = False) -> Panel:
    """Lines over time; `shares` stacks them up to 100 %."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .unit(unit)
        .min(0)
        .span(width)
        .height(8)
        .datasource(SOURCE)
        .fill_opacity(40 if shares else 8)
        .show_points(common_model.VisibilityMode.NEVER)
        .tooltip(common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI).sort(common_model.SortOrder.DESCENDING))
        .stacking(common.StackingConfig().mode(common_model.StackingMode.PERCENT if shares else common_model.StackingMode.NONE))
    )
    for letter, (legend, expr) in zip(ascii_uppercase, queries.items(), strict=False):
        panel = panel.with_target(query(expr, legend, letter))
    return panel


def buckets(title: str, unit: str, histogram: str, selector: str, *, about: str = "", width: int = 6) -> Panel:
    """How the observations of a histogram spread over its buckets, over time."""
    expr = f"sum by (le) (increase({histogram}_bucket{{{selector}}}{RATE}))"
    return (
        heatmap.Panel()
        .title(title)
        .description(about)
        .span(width)
        .height(8)
        .datasource(SOURCE)
        .with_target(query(expr, "{{le}}").format(prometheus_model.PromQueryFormat.HEATMAP))
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .cell_gap(1)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_model.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .scale(heatmap_model.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
    )


def figure(title: str, unit: str, expr: str, *, about: str = "", limits: tuple[tuple[float, str], ...] = ()) -> Panel:
    """One number, as of now; from each of `limits` on in its colour."""
    steps = [model.Threshold(value=None, color="green"), *(model.Threshold(value=value, color=color) for value, color in limits)]
    return (
        stat.Panel()
        .title(title)
        .description(about)
        .unit(unit)
        .span(4)
        .height(4)
        .datasource(SOURCE)
        .thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
        .with_target(query(expr))
    )


def rate(counter: str, selector: str, by: str) -> str:
    """A counter's rate, summed by labels."""
    return f"sum by ({by}) (rate({counter}{{{selector}}}{RATE}))"


def either(calls: str, requests: str) -> str:
    """The rate of calls over gRPC and of requests over HTTP together."""
    over_http = f"rate(http_server_request_duration_seconds_count{{{requests}}}{RATE})"
    return f"sum(rate(grpc_server_handled_total{{{calls}}}{RATE}) or {over_http})"


def mean(histogram: str, selector: str, by: str) -> str:
    """The mean of what a histogram observed."""
    return f"{rate(f'{histogram}_sum', selector, by)} / {rate(f'{histogram}_count', selector, by)}"


def quantile(q: float, histogram: str, selector: str, *by: str) -> str:
    """A percentile of what a histogram observed."""
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', selector, ', '.join(('le', *by)))})"


def overview() -> list[Panel]:
    """What an operator wants to know first."""
    ended = either(CALLS, INFER)
    failed = either(f'{CALLS}, grpc_code=~"{FAULTS}"', f'{INFER}, http_response_status_code=~"{HTTP_FAULTS}"')
    return [
        figure("Classify calls", "reqps", ended, about="Over gRPC and HTTP."),
        figure("Images answered", "ops", f"sum(rate(convoy_items_total{{{VERSION}}}{RATE}))"),
        figure("Calls failed by the server", "percentunit", f"{failed} / {ended}", limits=((0.001, "orange"), (0.01, "red"))),
        figure("99th percentile", "s", quantile(0.99, "grpc_server_handling_seconds", CALLS), about="Of calls over gRPC.",
               limits=((0.1, "orange"), (0.5, "red"))),
        figure("Versions served", "short", f"count(count by (model, version) (convoy_model_info{{{VERSION}}}))"),
        figure("Servers", "short", f"count(convoy_build_info{{{POD}}})"),
    ]  # fmt: skip


def traffic() -> list[Panel]:
    """What comes in, and how it ends."""
    errors = f'{POD}, grpc_code!="OK"'
    return [
        lines("Requests", "reqps", {"{{grpc_method}}": rate("grpc_server_started_total", POD, "grpc_service, grpc_method")},
              about="RPCs begun, by method."),
        lines("Errors by code", "reqps", {"{{grpc_code}}": rate("grpc_server_handled_total", errors, "grpc_code")},
              about="RPCs that ended otherwise than OK."),
        lines("Rejections by reason", "reqps", {"{{model}} {{reason}}": rate("convoy_rejections_total", MODEL, "model, reason")},
              about="Requests to a served model that were not answered."),
        lines("Images", "ops", {"{{model}} {{version}}": rate("convoy_items_total", VERSION, "model, version")}),
        lines("Requests in hand", "short", {"{{model}}": f"sum by (model) (convoy_inflight_requests{{{MODEL}}})"}),
        lines("Calls by pod", "reqps", {"{{pod}}": rate("grpc_server_handled_total", CALLS, "pod")},
              about="Uneven lines mean that clients are not spread: one gRPC connection stays on one pod."),
    ]  # fmt: skip


def latency() -> list[Panel]:
    """How long it takes, as a whole and by phase."""
    whole, phases = "grpc_server_handling_seconds", "convoy_phase_seconds"
    selectors = {phase: f'{VERSION}, phase="{phase}"' for phase in PHASES}
    return [
        lines("Latency of calls", "s", {f"p{100 * q:g}": quantile(q, whole, CALLS) for q in QUANTILES}, width=12,
              about="From a call's arrival to its end. Points are exemplars: they lead to a trace."),
        buckets("Calls", "s", whole, CALLS, width=12),
        *(lines(f"Latency by phase: {phase}", "s",
                {f"p{100 * q:g} {{{{model}}}}": quantile(q, phases, selector, "model") for q in QUANTILES}, width=6)
          for phase, selector in selectors.items()),
        *(buckets(phase.capitalize(), "s", phases, selector) for phase, selector in selectors.items()),
    ]  # fmt: skip


def http() -> list[Panel]:
    """What comes in on the HTTP port."""
    requests, answered = "http_server_request_duration_seconds", "http_server_request_duration_seconds_count"
    return [
        lines("HTTP requests", "reqps", {"{{http_route}}": rate(answered, POD, "http_route")},
              about="By route; nothing stands for paths that are none."),
        lines("HTTP answers by code", "reqps",
              {"{{http_response_status_code}}": rate(answered, POD, "http_response_status_code")}),
        lines("Latency over HTTP", "s", {f"p{100 * q:g}": quantile(q, requests, INFER) for q in QUANTILES},
              about="Of requests for inference, from arrival to answer."),
    ]  # fmt: skip


def batching() -> list[Panel]:
    """How well the work is packed, and what waits."""
    served = "{{model}} {{version}}"
    size = mean("convoy_batch_items", VERSION, "model, version")
    most = f"max by (model, version) (convoy_batch_limit_items{{{VERSION}}})"
    return [
        lines("Batch size", "short", {
            f"{served} mean": size,
            "{{model}} p90": quantile(0.9, "convoy_batch_items", VERSION, "model"),
        }),
        lines("Batch fill", "percentunit", {served: f"{size} / {most}"},
              about="Mean size of a batch in terms of the largest. At 1 the server can take no more."),
        buckets("Batches by items", "short", "convoy_batch_items", VERSION, width=8),
        lines("Queue", "short", {
            "{{model}}": f"sum by (model) (convoy_queue_items{{{MODEL}}})",
            "{{model}} limit": f"sum by (model) (convoy_queue_limit_items{{{MODEL}}})",
        }, about="Items that wait, and how many may: each version has a queue."),
        lines("Queue fill", "percentunit", {"{{model}} {{pod}}": f"max by (model, pod) (convoy:queue:saturation{{{MODEL}}})"}),
        lines("Batches", "ops", {served: rate("convoy_batch_items_count", VERSION, "model, version")}),
    ]  # fmt: skip


def predictions() -> list[Panel]:
    """What the models say: it drifts when the world does."""
    counted = f"sort_desc(sum by (label) (increase(convoy_predictions_total{{{VERSION}}}[$__range])))"
    drift = 'convoy:predictions:psi{namespace=~"$namespace", model=~"$model", version=~"$version"}'
    return [
        lines("Predictions by class", "percentunit", {"{{label}}": rate("convoy_predictions_total", VERSION, "label")},
              shares=True),
        lines("Confidence", "percentunit", {
            "{{model}} {{version}} mean": mean("convoy_confidence", VERSION, "model, version"),
            "{{model}} p10": quantile(0.1, "convoy_confidence", VERSION, "model"),
        }, about="Probability of the best label. A fall means pictures that the model does not know."),
        buckets("Confidence by bucket", "percentunit", "convoy_confidence", VERSION, width=8),
        lines("Drift", "short", {"{{model}} {{version}}": drift}, width=12,
              about="Population stability index of 6 hours' labels against those of 7 days: above 0.25 they have changed."),
        bargauge.Panel().title("Predictions in the time shown").span(12).height(8).datasource(SOURCE).unit("short").min(0)
        .orientation(common_model.VizOrientation.HORIZONTAL).with_target(query(counted, "{{label}}").instant()),
    ]  # fmt: skip


def models() -> list[Panel]:
    """Which versions are served, by what, and what became of others."""
    columns = ("model", "version", "provider", "precision", "namespace", "pod", "digest")
    by = ", ".join(columns)
    tidy = model.DataTransformerConfig(
        id_val="organize",
        options={
            "indexByName": {name: index for index, name in enumerate(columns)},
            "excludeByName": {"Time": True, "Value": True},
        },
    )
    versions = query(f"max by ({by}) (convoy_model_info{{{VERSION}}})").instant().format(prometheus_model.PromQueryFormat.TABLE)
    return [
        table.Panel().title("Versions served").span(12).height(8).datasource(SOURCE).with_transformation(tidy)
        .with_target(versions),
        lines("Loads", "short", {
            "{{model}} {{outcome}}": f"sum by (model, outcome) (increase(convoy_model_loads_total{{{MODEL}}}{RATE}))",
        }, width=6),
        lines("Versions that cannot be loaded", "short", {
            "{{model}} {{version}} {{outcome}}": f"count by (model, version, outcome) (convoy_model_load_failed{{{POD}}})",
        }, width=6, about="Servers on which it is so now."),
        lines("Seconds of the last load", "s", {"{{model}}": f"max by (model) (convoy_model_load_seconds{{{MODEL}}})"}, width=6),
        lines("Threads of ONNX Runtime", "short", {"{{model}}": f"max by (model) (convoy_ort_threads{{{MODEL}}})"}, width=6),
        lines("Gave CUDA up", "short", {
            "{{model}} {{version}} {{pod}}": f"max by (model, version, pod) (convoy_provider_fallback{{{VERSION}}})",
        }, width=6, about="1 for a version that runs on the CPU though CUDA is installed."),
        lines("Servers by version", "short", {"Convoy {{version}}": f"count by (version) (convoy_build_info{{{POD}}})"}, width=6),
        lines("Servers by transport", "short", {"{{transport}}": f"count by (transport) (convoy_transport_info{{{POD}}})"},
              width=6),
        lines("Workers", "short", {
            "{{pod}}": f"convoy_workers{{{POD}}}",
            "{{pod}} ready": f"convoy_workers_ready{{{POD}}}",
            "{{pod}} restarts in 30 minutes": f"increase(convoy_worker_restarts_total{{{POD}}}[30m])",
        }, width=6, about="Of servers with --workers."),
        lines("Connections of each worker", "short", {"{{pod}} {{worker}}": f"convoy_worker_connections{{{POD}}}"},
              width=6, about="Of servers with --workers."),
        lines("gRPC thread", "percentunit", {
            "{{pod}} {{worker}}": f"sum by (pod, worker) (rate(convoy_transport_busy_seconds_total{{{POD}}}{RATE}))",
        }, width=6, about="The share of a CPU that the thread which drives gRPC takes. At 1 it is the limit: if CPUs are idle, "
              "more workers help, and clients with several connections."),
    ]  # fmt: skip


def objectives() -> list[Panel]:
    """How fast the error budgets are spent: 1 spends them in exactly 30 days."""
    left = 'min by (namespace, job) (1 - convoy:availability_errors:ratio_rate3d{namespace=~"$namespace"} / 0.001)'
    return [
        *(lines(f"Burn rate: {name}", "short", {
            f"{{{{namespace}}}} {window}": f'convoy:{slo}_errors:ratio_rate{window}{{namespace=~"$namespace"}} / {share}'
            for window in WINDOWS
        }, width=10, about="The alerts page at 14.4 (1 h and 5 m) and 6 (6 h and 30 m).")
          for name, slo, share in (
              ("availability, 99.9 %", "availability", 0.001), ("99 % of calls within 0.1 s", "latency", 0.01))),
        figure("Error budget left", "percentunit", left, about="Of 30 days of availability like the last 3."),
    ]  # fmt: skip


def resources() -> list[Panel]:
    """What it takes."""
    return [
        lines("CPU", "short", {
            "{{pod}}": f"sum by (pod) (rate(process_cpu_seconds_total{{{POD}}}{RATE}) {OF_CONVOY})",
        }, about="Cores in use.", width=6),
        lines("Memory", "bytes", {
            "{{pod}}": f"sum by (pod) (process_resident_memory_bytes{{{POD}}} {OF_CONVOY})",
            "{{pod}} requests in hand": f"sum by (pod) (convoy_inflight_bytes{{{POD}}} {OF_CONVOY})",
        }, width=6),
        lines("Open files", "short", {
            "{{pod}}": f"sum by (pod) (process_open_fds{{{POD}}} {OF_CONVOY})",
            "limit": f"min(process_max_fds{{{POD}}} {OF_CONVOY})",
        }, width=6),
        lines("Starts anew in 30 minutes", "short", {
            "{{pod}}": f"sum by (pod) (changes(process_start_time_seconds{{{POD}}}[30m]) {OF_CONVOY})",
        }, width=6),
    ]  # fmt: skip


def gpu() -> list[Panel]:
    """From NVIDIA's DCGM exporter, which must run on the nodes."""
    return [
        lines(title, unit, {"{{pod}} GPU {{gpu}}": f"max by (pod, gpu) ({metric}{{{POD}}})"})
        for title, unit, metric in (
            ("GPU utilisation", "percent", "DCGM_FI_DEV_GPU_UTIL"),
            ("GPU memory", "mbytes", "DCGM_FI_DEV_FB_USED"),
            ("GPU power", "watt", "DCGM_FI_DEV_POWER_USAGE"),
        )
    ]


def variable(name: str, expr: str) -> dashboard.QueryVariable:
    """A choice of any number of a label's values; all of them at first."""
    return (
        dashboard.QueryVariable(name)
        .query(expr)
        .datasource(SOURCE)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )


def dashboard_json() -> str:
    """The dashboard as JSON."""
    made = (
        dashboard.Dashboard("Convoy")
        .uid("convoy")
        .description("Image classification served over gRPC: traffic, latency, batches, models, predictions, objectives.")
        .tags(["convoy", "grpc", "model-serving"])
        .timezone("browser")
        .refresh("30s")
        .time("now-1h", "now")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(variable("namespace", "label_values(convoy_build_info, namespace)"))
        .with_variable(variable("pod", 'label_values(convoy_build_info{namespace=~"$namespace"}, pod)'))
        .with_variable(variable("model", f"label_values(convoy_model_info{{{POD}}}, model)"))
        .with_variable(variable("version", f"label_values(convoy_model_info{{{MODEL}}}, version)"))
    )
    rows = {
        "Overview": overview, "Traffic": traffic, "Latency": latency, "HTTP": http, "Batches and queue": batching,
        "Predictions": predictions, "Models": models, "Objectives": objectives, "CPU and memory": resources,
        "GPU (DCGM exporter)": gpu,
    }  # fmt: skip
    for title, panels in rows.items():
        made = made.with_row(dashboard.Row(title))
        for panel in panels():
            made = made.with_panel(panel)
    built = made.build()
    for number, placed in enumerate(built.panels or [], start=1):
        placed.id_val = number
    return JSONEncoder(sort_keys=True, indent=2).encode(built) + "\n"


def main() -> None:
    """Writes the file, or checks it."""
    text = dashboard_json()
    if "--check" not in sys.argv:
        OUTPUT.write_text(text, encoding="utf-8")
    elif not OUTPUT.exists() or OUTPUT.read_text(encoding="utf-8") != text:
        sys.exit(f"stale, run `make dashboards`: {OUTPUT.name}")
    else:
        print(f"{OUTPUT.name} is fresh")


if __name__ == "__main__":
    main()
