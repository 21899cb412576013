"""The budget of instructions, and how callgrind's files are read."""

from pathlib import Path

import pytest

from tests.benchmarks import callgrind
from tests.benchmarks.instruction_budget import POINTS, differences, read

FIGURES = {"CPython 3.11, interpreted": {"pixels: 16": 2.0}}

COUNTED = """# callgrind format
positions: line
events: Ir

ob=/usr/lib/libpython3.11.so.1.0
fl=ceval.c
fn=_PyEval_EvalFrameDefault
10 100
fi=inlined.c
12 20
cob=/usr/lib/libc.so.6
cfn=malloc
calls=3 40
12 600

ob=/usr/lib/libc.so.6
fn=malloc
40 600

totals: 720
"""


@pytest.mark.parametrize(
    ("now", "says"),
    [(2.0, []), (2.059, []), (1.941, []), (2.07, ["3.5% more than 2.000"]), (1.9, ["5.0% less than 2.000"])],
)
def test_dearer_and_cheaper_calls_are_told(now: float, says: list[str]) -> None:
    found = differences("CPython 3.11, interpreted", {"pixels: 16": now}, FIGURES)
    assert len(found) == len(says)
    assert all(part in line and "--renew" in line for part, line in zip(says, found, strict=True))


def test_a_build_or_a_call_without_figures_is_told_how_to_add_them() -> None:
    (line,) = differences("CPython 3.15, interpreted", {"pixels: 16": 2.0}, FIGURES)
    assert "no figures for CPython 3.15, interpreted" in line
    assert "--renew" in line
    (line,) = differences("CPython 3.11, interpreted", {"PNG: 16": 2.0}, FIGURES)
    assert "no figure is written down" in line


def test_every_build_has_figures_for_every_call() -> None:
    names = [f"{shape}: {batch}" for shape, batch in POINTS]
    assert {build: list(figures) for build, figures in read().items()} == dict.fromkeys(read(), names)
    assert "CPython 3.11, interpreted" in read()  # that of .ci/run


def test_costs_of_called_functions_are_not_counted_twice(tmp_path: Path) -> None:
    path = tmp_path / "counted.2"
    path.write_text(COUNTED)
    assert callgrind.read(path) == {("libpython3.11.so.1.0", "_PyEval_EvalFrameDefault"): 120, ("libc.so.6", "malloc"): 600}
