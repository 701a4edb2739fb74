"""The paired bootstrap over items (Efron and Tibshirani 1993; intervals and p-values by Davison and Hinkley 1997).

A resample draws as many items as there are, with replacement, and takes both models' values of each. All that matters
of it is how often every distinct item was drawn, which is multinomial: a task of a thousand questions has just four
distinct items (each model right or wrong), so that ten thousand resamples take milliseconds.

What is computed on resamples is how lm-eval makes one value of many items': always a function of a ratio of two sums
over items. A mean has 1 for every denominator; `bits_per_byte` and the weighted perplexities have a document's
log-likelihood and its bytes or words (lm-eval, `api/metrics.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from neuronmoe_plugins.errors import UserError

# Counts of a chunk of resamples, in 64-bit integers: 32 MB.
CHUNK_COUNTS = 4_000_000
# A difference this small beside the values is what rounding leaves of none.
ROUNDING = 1e-12
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


@dataclass(frozen=True)
class Bootstrap:
    """How to resample.

    Attributes:
        resamples: How many.
        seed: Of the random draws; every test starts from it, so that none depends on what else is tested.
        confidence: Of the interval, between 0 and 1.

    Raises:
        UserError: if the confidence is not between 0 and 1, or the resamples are too few for it.
    """

    resamples: int = 10_000
    seed: int = 42
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise UserError(f"--confidence must lie between 0 and 1; got {self.confidence}")
        if self.seed < 0:
            raise UserError(f"--seed must not be negative; got {self.seed}")
        least = math.ceil(2 / (1 - self.confidence) - 1 - 1e-6)
        if self.resamples < least:
            raise UserError(
                f"--resamples must be at least {least} for a confidence of {self.confidence}; got {self.resamples}"
            )

    @property
    def tail(self) -> int:
        """Rank, from 1, of the resample at which the interval begins: (resamples + 1) (1 - confidence) / 2, floored."""
        # Without the last term, rounding would take one off where the product is whole.
        return math.floor((self.resamples + 1) * (1 - self.confidence) / 2 + 1e-6)


@dataclass(frozen=True)
class Stratum:
    """Items that are resampled among themselves: those of one task.

    Attributes:
        values: (items, models, 2) float64: numerator and denominator of each item for each model.
        weight: Of the task's value in its group's; the weights of a group sum to 1.
    """

    values: Array
    weight: float


@dataclass(frozen=True)
class Test:
    """A difference under resampling, in the metric's own unit.

    Attributes:
        low: Lower end of the interval.
        high: Upper end.
        p_value: Two-sided, of no difference; 2 / (resamples + 1) at the least.
    """

    __test__ = False  # pytest takes classes of this name for its own

    low: float
    high: float
    p_value: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval contains 0; then the p-value is above 1 - confidence."""
        return self.low <= 0 <= self.high


def resample(strata: Sequence[Stratum], statistic: Statistic, bootstrap: Bootstrap) -> Array:
    """(resamples, models) float64: the statistic of every resample; strata are resampled in themselves."""
    generator = np.random.default_rng(bootstrap.seed)
    total = np.zeros((bootstrap.resamples, strata[0].values.shape[1]))
    for stratum in strata:
        total += stratum.weight * _resample_stratum(stratum.values, statistic, bootstrap.resamples, generator)
    return total


def _resample_stratum(values: Array, statistic: Statistic, resamples: int, generator: np.random.Generator) -> Array:
    items, models, _ = values.shape
    distinct, counts = np.unique(values.reshape(items, -1), axis=0, return_counts=True)
    rows = max(1, CHUNK_COUNTS // len(distinct))
    chunks = []
    for start in range(0, resamples, rows):
        drawn = generator.multinomial(items, counts / items, size=min(rows, resamples - start))
        sums = (drawn @ distinct).reshape(-1, models, 2)
        chunks.append(statistic.of_sums(sums))
    return np.concatenate(chunks)


def standard_error(strata: Sequence[Stratum], statistic: Statistic, bootstrap: Bootstrap) -> float | None:
    """Standard deviation over resamples of one model's value; None if a resample has none."""
    values = resample(strata, statistic, bootstrap)[:, 0]
    return float(values.std(ddof=1)) if np.isfinite(values).all() else None


def paired_test(strata: Sequence[Stratum], statistic: Statistic, bootstrap: Bootstrap) -> Test | None:
    """Test the second model's value less the first's; None if a resample has no value, as without any bytes."""
    first, second = resample(strata, statistic, bootstrap).T
    return difference_of(first, second, bootstrap)


def difference_of(first: Array, second: Array, bootstrap: Bootstrap) -> Test | None:
    """The same of two models' values (resamples,), whatever was resampled.

    The interval runs between two resamples of the same rank from either end, so that it excludes 0 exactly where the
    p-value is at most 1 - confidence.
    """
    differences = second - first
    if not np.isfinite(differences).all():
        return None
    differences[np.abs(differences) <= ROUNDING * np.maximum(np.abs(first), np.abs(second))] = 0
    fewer = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    ordered = np.sort(differences)
    low, high = ordered[bootstrap.tail - 1], ordered[-bootstrap.tail]
    return Test(float(low), float(high), min(1.0, 2 * (1 + int(fewer)) / (1 + bootstrap.resamples)))
