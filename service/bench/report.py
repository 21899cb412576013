"""The result of a load: as a dict for --json, as tables, and as a plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram
from rich.console import Console
from rich.table import Table

from service.bench.load import NOT_SENT, Load, Outcome
from service.bench.server_metrics import Snapshot, quantile
from service.errors import UserError
from service.requests.phases import PHASES

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_BUSY_CORES = 0.9
_MESSAGE_LENGTH = 120


def summary(load: Load, items: int, outcome: Outcome, server: Snapshot | None) -> dict[str, Any]:
    """Everything that was measured, ready for JSON; `server` are the server's own measurements. Units stand in the names."""
    result: dict[str, Any] = {
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
        result["refused_latency_ms"] = _latency(outcome.refused)
    if load.rate:
        result["client_late_ms"] = _latency(outcome.late)
    if server is not None:
        result["server"] = _server(server)
    return result


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


def show(console: Console, result: Mapping[str, Any], outcome: Outcome) -> None:
    """Prints a summary; `result` is that of `summary`."""
    _show_load(console, result["load"])
    _show_rate(console, result, outcome)
    _show_latencies(console, result)
    _show_hints(console, result)


def _show_load(console: Console, load: Mapping[str, Any]) -> None:
    console.print(
        f"{_kind(load)}, {_plural(load['items_a_request'], 'image')} per request ({load['request_bytes']:,} bytes), "
        f"{_plural(load['connections'], 'connection')}, {_plural(load['processes'], 'client process', 'es')}, "
        f"{load['seconds']:g} s after {load['warmup_seconds']:g} s of warm-up"
    )


def _show_rate(console: Console, result: Mapping[str, Any], outcome: Outcome) -> None:
    # A closed loop always ends with its requests in flight.
    after_end = result["answered_after_end"] if "rate_per_second" in result["load"] else 0
    console.print(
        f"[bold]{_rate(result['requests_per_second'])} requests/s[/bold], {_rate(result['items_per_second'])} images/s; "
        f"{result['answered']:,} answered" + f", {after_end:,} of them after the end" * (after_end > 0)
    )
    for code, count in result["codes"].items():
        if code != "OK":
            message = " ".join(outcome.messages.get(code, "").split())[:_MESSAGE_LENGTH]
            console.print(f"[yellow]{code} {count:,}[/yellow]: {message}", highlight=False)


def _show_latencies(console: Console, result: Mapping[str, Any]) -> None:
    table = Table("ms", "min", "mean", *(f"p{percentile:g}" for percentile in PERCENTILES), "max",
                  box=None, header_style="bold", pad_edge=False)  # fmt: skip
    for name, key in (("answered", "latency_ms"), ("refused", "refused_latency_ms"), ("client late", "client_late_ms")):
        if result.get(key) is not None:
            table.add_row(name, *(f"{value:.2f}" for value in result[key].values()))
    server = result.get("server") or {"phases_ms": {}}
    for phase, values in server["phases_ms"].items():
        table.add_row(f"server: {phase}", "", "", *(_bounded(value, server["largest_bucket_ms"]) for value in values.values()))
    console.print(table)
    if server.get("cpu_us_a_request"):
        console.print(
            f"server: {server['cpu_us_a_request']:,.0f} us CPU per request, {server['mean_batch_items'] or 0:.1f} images per batch "
            "(warm-up included; percentiles from the buckets of /metrics)"
        )


def _show_hints(console: Console, result: Mapping[str, Any]) -> None:
    busiest = max(result["client_cpu_cores"], default=0.0)
    if busiest > _BUSY_CORES:
        console.print(f"[yellow]a client process used {busiest:.2f} of a core and may be the limit: try more --processes[/yellow]")
    if NOT_SENT in result["codes"]:
        console.print("[yellow]too many requests were unanswered at once: the server is far slower than this rate[/yellow]")


def _kind(load: Mapping[str, Any]) -> str:
    rate = load.get("rate_per_second")
    return f"{load['concurrency']} in flight" if rate is None else f"{rate:g} requests/s, Poisson"


def _plural(count: int, noun: str, ending: str = "s") -> str:
    return f"{count} {noun}{ending * (count != 1)}"


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def _bounded(milliseconds: float, largest: float) -> str:
    """A percentile from buckets, which have no values beyond the largest bound."""
    return f"{milliseconds:.2f}" if milliseconds < largest else f"> {largest:.0f}"


def plot(path: Path, result: Mapping[str, Any], outcome: Outcome) -> None:
    """Latency by percentile and answers by second, as a PNG. Raises UserError if it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _plot_latencies(left, outcome)
    _plot_answers(right, outcome)
    load = result["load"]
    figure.suptitle(
        f"{result['model']}: {_kind(load)}, {_plural(load['items_a_request'], 'image')} per request, "
        f"{_rate(result['requests_per_second'])} answered/s"
    )
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _plot_latencies(axes: Any, outcome: Outcome) -> None:
    """By number of nines: 90 %, 99 %, 99.9 % at equal distances."""
    for name, histogram in (("answered", outcome.answered), ("refused", outcome.refused)):
        if histogram.get_total_count():
            nines = [step / 20 for step in range(1 + 20 * max(1, len(str(histogram.get_total_count())) - 1))]
            shares = [100 * (1 - 10**-nine) for nine in nines]
            axes.plot(nines, [histogram.get_value_at_percentile(share) / 1000 for share in shares], label=name)
    most = max(2, int(axes.get_xlim()[1]))
    axes.set_xticks(range(most + 1), [f"{100 * (1 - 10**-nines):.{max(0, nines - 2)}f} %" for nines in range(most + 1)])
    axes.set(title="Latency by percentile", xlabel="percentile", ylabel="milliseconds", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()


def _plot_answers(axes: Any, outcome: Outcome) -> None:
    # Whole seconds, if there is one: the rest of the last would be noise.
    width = min(1.0, outcome.seconds) or 1.0
    answers = [outcome.by_second[second] / width for second in range(max(1, int(outcome.seconds)))]
    axes.stairs(answers, [width * edge for edge in range(len(answers) + 1)], baseline=None)
    axes.set(title="Answers by second", xlabel="second", ylabel="requests/s", ylim=(0, 1.1 * max(1, *answers)))
    axes.xaxis.get_major_locator().set_params(integer=outcome.seconds >= 1)
    axes.grid(alpha=0.3)
