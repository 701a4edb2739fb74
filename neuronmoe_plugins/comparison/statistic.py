"""The ways in which lm-eval makes one value of many items' that can be computed on resamples.

All of them are a function of a ratio of two sums over items. A mean has 1 for every denominator; `bits_per_byte` and
the weighted perplexities have a document's log-likelihood and its bytes or words (lm-eval, `api/metrics.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# lm-eval adds up in another order than numpy does.
RELATIVE_TOLERANCE = 1e-9
LN2 = math.log(2)

Array = np.ndarray


@dataclass(frozen=True)
class Statistic:
    """A function of a ratio of sums.

    Attributes:
        name: lm-eval's aggregation.
        is_ratio: Whether an item's value is a pair; else it is a number.
        of_ratio: From the ratio of the sums to the value, elementwise.
    """

    name: str
    is_ratio: bool
    of_ratio: Callable[[Array], Array]

    def of_sums(self, sums: Array) -> Array:
        """Values (...,) from the sums (..., 2) of numerators and denominators."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return self.of_ratio(sums[..., 0] / sums[..., 1])


STATISTICS = (
    Statistic("mean", False, lambda ratio: ratio),
    Statistic("perplexity", False, lambda ratio: np.exp(-ratio)),
    Statistic("bits_per_byte", True, lambda ratio: -ratio / LN2),
    Statistic("weighted_perplexity", True, lambda ratio: np.exp(-ratio)),
)
BY_NAME = {statistic.name: statistic for statistic in STATISTICS}


def candidates(aggregation: str | None, is_ratio: bool) -> list[Statistic]:
    """The statistics that an aggregation can be: the one of its name; any for a function of the task's own."""
    if aggregation in BY_NAME:
        return [BY_NAME[aggregation]]
    return [statistic for statistic in STATISTICS if statistic.is_ratio == is_ratio]


def is_close(value: float, other: float) -> bool:
    """Whether two values are the same but for the order of additions."""
    return math.isclose(value, other, rel_tol=RELATIVE_TOLERANCE, abs_tol=RELATIVE_TOLERANCE)
