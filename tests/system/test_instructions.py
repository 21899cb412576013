"""What a call costs, in instructions: no change makes calls dearer unseen."""

import pytest

from tests.benchmarks import instruction_budget
from tests.benchmarks.instructions import count

pytestmark = pytest.mark.system


@pytest.mark.timeout(900)  # under valgrind; a minute on a machine with nothing else to do
def test_a_call_costs_what_is_written_down() -> None:
    report = count(instruction_budget.POINTS)
    differences = instruction_budget.differences(report.build, report.figures(), instruction_budget.read())
    assert not differences, "\n".join(differences)
