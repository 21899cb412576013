"""Numbers as text for a page: values, probabilities, small matrices."""

import math

import numpy as np
from numpy.typing import NDArray

DECIMALS = 4


def number(value: object) -> str:
    """Four significant digits, with an exponent only for very small and very large numbers; integers in full."""
    if isinstance(value, int | np.integer):
        return f"{value:d}"
    real = float(value)  # type: ignore[arg-type]
    if real == 0 or not math.isfinite(real):
        return "0" if real == 0 else str(real)
    return f"{real:.4g}" if 1e-4 <= abs(real) < 1e6 else f"{real:.2e}"


def percent(share: float) -> str:
    """A probability, with more digits near 0 and 1."""
    if 0.001 <= share <= 0.999:
        return f"{share:.1%}"
    if share > 0.5:
        return f"{share:.2%}" if share < 0.9999 else "> 99.99%"
    return f"{share:.2%}" if share >= 0.0001 else "< 0.01%"


def matrix_rows(values: NDArray[np.generic], decimals: int = DECIMALS) -> list[list[str]]:
    """A small matrix as text, row by row; whole numbers without decimals."""
    return [
        [f"{round(value, decimals) + 0.0:.{decimals}f}" if value % 1 else f"{value:.0f}" for value in row]
        for row in values.tolist()
    ]
