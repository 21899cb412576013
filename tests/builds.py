"""What the compiled build cannot be tested for: where a test must see or replace what compiled code does not look up."""

import pytest

from service.compiled import build


def pure_only(why: str) -> pytest.MarkDecorator:
    """For a test that the pure build alone can have. The code is the same in both: so keep these few."""
    return pytest.mark.skipif(build() == "compiled", reason=f"for the pure build: {why}")
