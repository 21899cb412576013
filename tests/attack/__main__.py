"""The campaign: every attack in turn, and a table. Exit code 1 if the polite client or a probe failed, or the server grew.

Usage: python -m tests.attack [--minutes 6] [--only ATTACK]... [--workers 1] [--transport fast] [--model MODEL.onnx]
"""

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests import refusals
from tests.attack import campaign
from tests.attack.target import serving
from tests.benchmarks.transport import make_repository

GROWTH_MB = 60.0
"""What one attack may leave in a server that has seen none of its kind before: caches, arenas, a pool of threads."""

WIDTH = 180
"""Of the table, in characters."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0, help="for all attacks together")
    parser.add_argument("--only", action="append", choices=list(campaign.ATTACKS), help="an attack; all of them if not given")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--transport", choices=["fast", "public"], default="fast")
    parser.add_argument("--model", type=Path, help="a digits model; trained afresh if not given")
    parser.add_argument("--option", action="append", default=[], help="a further option of the server: --option=--log-level=error")
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True, width=WIDTH)
    attacks = arguments.only or list(campaign.ATTACKS)
    seconds = 60 * arguments.minutes / len(attacks)
    table = Table("attack", "sent", "RSS MB", "peak", "after", "threads", "files", "p99 ms", "slowest", "probe", "failed", box=None)
    troubles = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digits = make_repository(folder, arguments.model)
        repository = refusals.make_repository(folder / "attacked", digits / "digits" / "1" / "model.onnx")
        options = ("--workers", str(arguments.workers), "--transport", arguments.transport, *arguments.option)
        with serving(repository, folder, *options) as target:
            campaign.warm_up(target)
            for attack in attacks:
                result = campaign.run(target, attack, seconds)
                before, after, seen = result.before, result.after, result.seen
                failed = [*seen.failures, *seen.probe_failures]
                row = (attack, result.sent, f"{before.rss_mb:.0f}", f"{result.peak_mb:.0f}", f"{after.rss_mb:.0f}",
                       f"{before.threads} {after.threads}", f"{before.files} {after.files}", f"{seen.p99_ms:.0f}",
                       f"{seen.slowest_ms:.0f}", f"{seen.slowest_probe_ms:.0f}", str(len(failed)))  # fmt: skip
                table.add_row(*row)
                console.print("  ".join(row), style="dim")
                if failed:
                    troubles.append(f"{attack}: {len(failed)} failed, such as {failed[0]}")
                if after.rss_mb > before.rss_mb + GROWTH_MB:
                    troubles.append(f"{attack}: {after.rss_mb - before.rss_mb:.0f} MB were not given back")
    console.print(table)
    for trouble in troubles:
        console.print(trouble, style="red")
    sys.exit(bool(troubles))


if __name__ == "__main__":
    main()
