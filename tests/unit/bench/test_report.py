"""The printed summary of a load."""

import io
import re
from collections import Counter
from math import inf

from rich.console import Console

from service.bench.load import Load, Outcome
from service.bench.report import show, summary
from service.bench.server_metrics import Snapshot


def test_slow_rates_and_long_waits_are_shown_for_what_they_are() -> None:
    outcome = Outcome(by_second=Counter([3]), seconds=6.0, codes=Counter(OK=1))
    outcome.answered.record_value(5_000_000)
    server = Snapshot({"inference": [(5.0, 0.0), (10.0, 1.0), (inf, 10.0)]}, 1.0, 1.0, 1.0, 1.0, 0.0)
    found = summary(Load(target="", requests=(b"",), seconds=6, rate=0.4), 1, outcome, server)
    shown = io.StringIO()
    show(Console(file=shown, width=132), found, outcome)
    assert "0.17 requests/s" in shown.getvalue()
    assert re.search(r"server: inference +> 10000 +> 10000 +> 10000 *\n", shown.getvalue())
