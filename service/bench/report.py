"""What a load found, for people, for programs, and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram
from rich.console import Console
from rich.table import Table

from service.bench.load import NOT_SENT, Load, Outcome
from service.bench.server_metrics import Snapshot, quantile
from service.errors import UserError
from service.phases import PHASES

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_BUSY = 0.9
_SHOWN_MESSAGE = 120


def summary(load: Load, items: int, outcome: Outcome, server: Snapshot | None) -> dict[str, Any]:
    """Everything that was measured, as JSON; milliseconds, but for what is named otherwise."""
    found: dict[str, Any] = {
        "load": {
            "server": load.target,
            "kind": "poisson" if load.rate else "stream" if load.stream else "closed loop",
            **({"rate_per_second": load.rate} if load.rate else {"concurrency": load.concurrency}),
            "items_a_request": items,
            "request_bytes": len(load.requests[0]),
            "seconds": round(outcome.seconds, 3),
            "warmup_seconds": load.warmup_seconds,
            "connections": max(load.connections, load.processes),
            "processes": load.processes,
            "timeout_seconds": load.timeout_seconds,
            "seed": load.seed,
        },
        "answered": outcome.answered.get_total_count(),
        "answered_after_end": outcome.answered_after_end,
        "requests_per_second": outcome.requests_per_second,
        "items_per_second": items * outcome.requests_per_second,
        "latency_ms": _latency(outcome.answered),
        "codes": dict(outcome.codes.most_common()),
        "client_cpu_cores": [round(cores, 3) for cores in outcome.client_cpu_cores],
    }
    if outcome.refused.get_total_count():
        found["refused_latency_ms"] = _latency(outcome.refused)
    if load.rate:
        found["client_late_ms"] = _latency(outcome.late)
    if server is not None:
        found["server"] = _server(server)
    return found


def _latency(histogram: HdrHistogram) -> dict[str, float] | None:
    if not histogram.get_total_count():
        return None
    return {
        "min": histogram.get_min_value() / 1000,
        "mean": histogram.get_mean_value() / 1000,
        **{f"p{percentile:g}": histogram.get_value_at_percentile(percentile) / 1000 for percentile in PERCENTILES},
        "max": histogram.get_max_value() / 1000,
    }


def _server(server: Snapshot) -> dict[str, Any]:
    return {
        "requests": int(server.requests),
        "cpu_us_a_request": 1e6 * server.process_cpu_seconds / server.requests if server.requests else None,
        "mean_batch_items": server.batch_items / server.batches if server.batches else None,
        "largest_bucket_ms": max((1000 * buckets[-2][0] for buckets in server.phases.values()), default=None),
        "phases_ms": {
            phase: {f"p{percentile:g}": 1000 * quantile(server.phases[phase], percentile / 100) for percentile in PERCENTILES[:3]}
            for phase in PHASES
            if server.phases.get(phase, [(0.0, 0.0)])[-1][1]
        },
    }


def show(console: Console, found: Mapping[str, Any], outcome: Outcome) -> None:
    """Prints a summary."""
    load = found["load"]
    images = f"{load['items_a_request']} image{'s' * (load['items_a_request'] != 1)} a request"
    many = f"{load['rate_per_second']:g} requests/s, Poisson" if "rate_per_second" in load else f"{load['concurrency']} in flight"
    console.print(
        f"{many}, {images} ({load['request_bytes']:,} bytes), {load['connections']} connection{'s' * (load['connections'] != 1)}, "
        f"{load['processes']} client process{'es' * (load['processes'] != 1)}, {load['seconds']:g} s after "
        f"{load['warmup_seconds']:g} s of warm-up"
    )
    late = found["answered_after_end"] if "rate_per_second" in load else 0  # of a closed loop always those in flight
    console.print(
        f"[bold]{_rate(found['requests_per_second'])} requests/s[/bold], {_rate(found['items_per_second'])} images/s; "
        f"{found['answered']:,} answered" + f", {late:,} of them after the end" * (late > 0)
    )
    for code, count in found["codes"].items():
        if code != "OK":
            message = " ".join(outcome.messages.get(code, "").split())[:_SHOWN_MESSAGE]
            console.print(f"[yellow]{code} {count:,}[/yellow]: {message}", highlight=False)
    table = Table("ms", "min", "mean", *(f"p{percentile:g}" for percentile in PERCENTILES), "max",
                  box=None, header_style="bold", pad_edge=False)  # fmt: skip
    _row(table, "answered", found["latency_ms"])
    _row(table, "refused", found.get("refused_latency_ms"))
    _row(table, "client late", found.get("client_late_ms"))
    server = found.get("server") or {"phases_ms": {}}
    for phase, values in server["phases_ms"].items():
        table.add_row(f"server: {phase}", "", "", *(_bounded(value, server["largest_bucket_ms"]) for value in values.values()))
    console.print(table)
    if server.get("cpu_us_a_request"):
        console.print(
            f"server: {server['cpu_us_a_request']:,.0f} us CPU a request, {server['mean_batch_items'] or 0:.1f} images a batch "
            "(warm-up included; percentiles from /metrics' buckets)"
        )
    used = found["client_cpu_cores"]
    if used and max(used) > _BUSY:
        console.print(
            f"[yellow]a client process used {max(used):.2f} of a core: it may be the limit; try more --processes[/yellow]"
        )
    if NOT_SENT in found["codes"]:
        console.print("[yellow]the client could not keep so many requests open: the server is far behind this rate[/yellow]")


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def _bounded(milliseconds: float, largest: float) -> str:
    """A percentile from buckets, which do not say how far beyond the largest it is."""
    return f"{milliseconds:.2f}" if milliseconds < largest else f"> {largest:.0f}"


def _row(table: Table, name: str, latency: Mapping[str, float] | None) -> None:
    if latency is not None:
        table.add_row(name, *(f"{value:.2f}" for value in latency.values()))


def plot(path: Path, found: Mapping[str, Any], outcome: Outcome) -> None:
    """Latency by percentile and answers by second, as a PNG. Raises UserError if it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for name, histogram in (("answered", outcome.answered), ("refused", outcome.refused)):
        if histogram.get_total_count():
            nines = [step / 20 for step in range(1 + 20 * max(1, len(str(histogram.get_total_count())) - 1))]
            shares = [100 * (1 - 10**-nine) for nine in nines]
            left.plot(nines, [histogram.get_value_at_percentile(share) / 1000 for share in shares], label=name)
    most = max(2, int(left.get_xlim()[1]))
    left.set_xticks(range(most + 1), [f"{100 * (1 - 10**-nines):.{max(0, nines - 2)}f} %" for nines in range(most + 1)])
    left.set(title="Latency by percentile", xlabel="percentile", ylabel="milliseconds", ylim=(0, None))
    left.grid(alpha=0.3)
    left.legend()
    # Whole seconds, unless there is none: what is left over of the last would be noise.
    width = min(1.0, outcome.seconds) or 1.0
    answers = [outcome.by_second[second] / width for second in range(max(1, int(outcome.seconds)))]
    right.stairs(answers, [width * edge for edge in range(len(answers) + 1)], baseline=None)
    right.set(title="Answers by second", xlabel="second", ylabel="requests/s", ylim=(0, 1.1 * max(1, *answers)))
    right.xaxis.get_major_locator().set_params(integer=outcome.seconds >= 1)
    right.grid(alpha=0.3)
    load = found["load"]
    many = f"{load['rate_per_second']:g} requests/s" if "rate_per_second" in load else f"{load['concurrency']} in flight"
    figure.suptitle(
        f"{found['model']}: {many}, {load['items_a_request']} a request, {_rate(found['requests_per_second'])} answered/s"
    )
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
