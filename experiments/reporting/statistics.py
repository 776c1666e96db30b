"""What can be said of a difference between our mean and a paper's."""

import math
from typing import NamedTuple

from scipy.special import stdtrit

LEVEL = 0.95
FORMULA = (
    "Difference: d = ours - paper, with a 95 % confidence interval after Welch, d ± t(0.975, k) sqrt(a² + b²), where a"
    " and b are the standard errors of our mean and of the paper's, over n and m seeds, and"
    " k = (a² + b²)² / (a⁴ / (n - 1) + b⁴ / (m - 1)). A standard deviation s that a paper prints counts as"
    " b = s / sqrt(m). Where a paper prints neither, the interval holds our error alone (b = 0, k = n - 1) and is"
    " marked °. With a single seed there is no interval."
)


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    error: float | None  # standard error; None where it is not known
    seeds: int


class Difference(NamedTuple):
    """Ours minus the paper's."""

    value: float
    low: float | None  # end of the confidence interval; None where there is none
    high: float | None
    degrees_of_freedom: float | None
    ours_alone: bool  # whether the paper's error is unknown


def difference(ours: Estimate, paper: Estimate) -> Difference | None:
    """The difference of two means with its confidence interval, see FORMULA; None where our mean is no number."""
    if not math.isfinite(ours.mean):
        return None
    value, alone = ours.mean - paper.mean, paper.error is None
    if ours.error is None or (paper.seeds < 2 and not alone):
        return Difference(value, None, None, None, alone)
    a, b = ours.error**2, (paper.error or 0.0) ** 2
    freedom = ours.seeds - 1.0
    if not alone and a + b > 0:
        freedom = (a + b) ** 2 / (a**2 / (ours.seeds - 1) + b**2 / (paper.seeds - 1))
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(a + b)
    return Difference(value, value - half, value + half, freedom, alone)


def ranks(values: list[float | None], *, less_is_better: bool = False) -> list[int | None]:
    """The places of the best three, equal values sharing one; None for the others and for what is no number.

    Nothing is ranked where there are fewer than two numbers to compare.

    Args:
      values: in any order; None or NaN for none.
      less_is_better: whether the smallest is the first.
    """
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if len(numbers) < 2:
        return [None] * len(values)
    ahead = [
        None
        if value is None or not math.isfinite(value)
        else sum(other < value if less_is_better else other > value for other in numbers)
        for value in values
    ]
    return [place + 1 if place is not None and place < 3 else None for place in ahead]
