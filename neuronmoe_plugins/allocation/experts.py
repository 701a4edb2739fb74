"""From one score per layer to a number of experts per layer (paper, Eq. 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

from neuronmoe_plugins.allocation.scale import Score
from neuronmoe_plugins.errors import UserError


class Rounding(str, Enum):
    """How Eq. 4 becomes a whole number: the paper prints round, its published lists follow from floor."""

    FLOOR = "floor"
    ROUND = "round"


@dataclass(frozen=True)
class ExpertPlan:
    """Experts per layer, the base MLP included, and why they are what they are where that needs saying."""

    num_experts: list[int]
    note: str | None = None


def scale_experts(
    layer_scores: Sequence[Score], min_experts: int = 1, max_experts: int = 6, rounding: Rounding = Rounding.FLOOR
) -> ExpertPlan:
    """Scale layer scores linearly between the least and the most experts (paper, Eq. 3 and 4).

    E_l = min_experts + rounding((S_l - min S) / (max S - min S) * (max_experts - min_experts)), computed exactly;
    `round` takes halves to the even number. Equal scores everywhere give every layer `min_experts`, with a note.

    Raises:
        UserError: no scores; a NaN, infinite or negative score; bounds that are no range of at least one expert.
    """
    check_bounds(min_experts, max_experts)
    check_scores(layer_scores)
    exact = [Fraction(score) for score in layer_scores]
    lowest, highest = min(exact), max(exact)
    if lowest == highest:
        note = f"all {len(exact)} layers score {float(lowest):g}, so each gets the minimum of {min_experts}"
        return ExpertPlan([min_experts] * len(exact), note)
    to_integer = math.floor if rounding is Rounding.FLOOR else round
    added = max_experts - min_experts
    return ExpertPlan([min_experts + to_integer((score - lowest) * added / (highest - lowest)) for score in exact])


def check_bounds(min_experts: int, max_experts: int | None) -> None:
    """Raise `UserError` if no layer could have at least `min_experts` >= 1 and at most `max_experts` (None: any)."""
    if min_experts < 1:
        raise UserError(f"--min-experts is {min_experts}; it must be at least 1, the base MLP itself")
    if max_experts is not None and min_experts > max_experts:
        raise UserError(f"--min-experts {min_experts} is more than --max-experts {max_experts}")


def check_scores(layer_scores: Sequence[Score]) -> None:
    """Raise `UserError` naming the first layer whose score is no count: NaN, infinite or negative; or an empty list."""
    if not layer_scores:
        raise UserError("the list of layer scores is empty; one number per decoder layer is needed")
    for layer, score in enumerate(layer_scores):
        if not _is_finite(score) or score < 0:
            raise UserError(f"the score of layer {layer} is {score}; it must be a finite number, zero or more")


def _is_finite(score: Score) -> bool:
    try:
        return math.isfinite(score)
    except OverflowError:  # a whole number or fraction beyond the largest float
        return False
