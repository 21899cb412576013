"""What a call may cost: figures of `instructions.py`, kept in `instructions.json`, by Python's version and Convoy's build.

Both a dearer and a cheaper call are differences: what a change has saved, the next one could waste unseen. For a build without
figures there is no answer but how to add them.
"""

import json
from pathlib import Path

from tests.benchmarks.instructions import Point

FILE = Path(__file__).with_name("instructions.json")

POINTS: list[Point] = [
    ("Classify, pixels", 1), ("Classify, pixels", 16), ("Classify, PNG", 16),
    ("Open Inference, raw", 1), ("Open Inference, raw", 16), ("Open Inference, typed", 16),
]  # fmt: skip
"""The calls that have a budget."""

TOLERANCE = 0.03

RENEW = "python -m tests.benchmarks.service --instructions --renew"
SHOW = "python -m tests.benchmarks.service --instructions --functions 30"

Figures = dict[str, dict[str, float]]
"""What a call takes, in yardsticks, by `Classify, pixels: 16`, by build."""


def differences(build: str, found: dict[str, float], figures: Figures) -> list[str]:
    """What is dearer or cheaper than is written down, a line each; one line if nothing is for this build."""
    known = figures.get(build)
    if known is None:
        listed = "; ".join(sorted(figures))
        return [f"there are no figures for {build}, only for {listed}: add them with main's code by `{RENEW}`, and commit them"]
    lines = []
    for name, now in found.items():
        before = known.get(name, 0.0)
        costs = f"a call of {name} takes {now:.3f} yardsticks"
        if not before:
            lines.append(f"{costs}, and no figure is written down: `{RENEW}`")
        elif now > (1 + TOLERANCE) * before:
            lines.append(
                f"{costs}, {now / before - 1:.1%} more than {before:.3f}: see where they go (`{SHOW}`) or, if it must be, `{RENEW}`"
            )
        elif now < (1 - TOLERANCE) * before:
            lines.append(f"{costs}, {1 - now / before:.1%} less than {before:.3f}: write that down with `{RENEW}`")
    return lines


def read() -> Figures:
    """The figures that are written down."""
    figures: Figures = json.loads(FILE.read_text())
    return figures


def write(build: str, found: dict[str, float]) -> None:
    """Writes the figures of one build; those of others stay."""
    figures = read() if FILE.exists() else {}
    figures[build] = {name: round(number, 4) for name, number in found.items()}
    FILE.write_text(json.dumps(dict(sorted(figures.items())), indent=2) + "\n")
