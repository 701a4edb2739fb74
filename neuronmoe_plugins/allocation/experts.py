"""From one score per layer to experts per layer: the paper's rule, LayerMoE's shares, and fits to a total or a cost."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import TypeAlias

from neuronmoe_plugins.errors import UserError

Score: TypeAlias = float | Fraction
"""Score of one layer; a Fraction where a float would round, so that whole results stay whole."""


class Scale(str, Enum):
    """What a layer's score counts as: itself (the paper's), its square root, or log(1 + score).

    Under the linear scale one layer far above all others takes nearly all experts; the other two soften that.
    """

    LINEAR = "linear"
    SQRT = "sqrt"
    LOG = "log"


FUNCTIONS: dict[Scale, Callable[[Score], Score]] = {
    Scale.LINEAR: lambda score: score,
    Scale.SQRT: math.sqrt,
    Scale.LOG: math.log1p,
}


def rescale(layer_scores: Sequence[Score], scale: Scale) -> list[Fraction]:
    """The scores (finite, zero or more) on that scale, in the same order; the linear scale keeps them exactly."""
    function = FUNCTIONS[scale]
    return [Fraction(function(score)) for score in layer_scores]


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


def ceil_shares(weights: Sequence[Fraction], budget: int) -> list[int]:
    """E_l = ceil(w_l / sum(w) * budget), computed exactly.

    The sum is at least the budget, and above it by less than the number of layers.

    Args:
        weights: One per layer, zero or more; where all are zero, the layers share alike.
        budget: What is shared out before rounding up.
    """
    weights = weights if any(weights) else [Fraction(1)] * len(weights)
    return [math.ceil(weight * budget / sum(weights)) for weight in weights]


@dataclass(frozen=True)
class MlpShapes:
    """The sizes of a model from which added parameters follow.

    Attributes:
        hidden_size: Width of the hidden states, which the routers read.
        mlp_parameters: Weights and biases of one new expert of each layer, a copy of the MLP.
        mlp_widths: Inputs and outputs of each layer's MLP's linear layers, the parameters of a low-rank expert per
            rank; None if not known.
    """

    hidden_size: int
    mlp_parameters: list[int]
    mlp_widths: list[int] | None = None

    def of_rank(self, rank: int | None) -> MlpShapes | None:
        """The sizes where new experts have that rank instead of being copies (None); None if they are not known."""
        if rank is None:
            return self
        if self.mlp_widths is None:
            return None
        return MlpShapes(self.hidden_size, [rank * width for width in self.mlp_widths], self.mlp_widths)

    def added_parameters(self, num_experts: Sequence[int]) -> list[int]:
        """New parameters of each layer: its copies of the MLP and, in a mixture, a router row for every expert.

        Args:
            num_experts: Experts per layer, the base MLP included; a layer with 1 stays dense and adds nothing.
        """
        return [
            (experts - 1) * copy + experts * self.hidden_size if experts > 1 else 0
            for experts, copy in zip(num_experts, self.mlp_parameters, strict=True)
        ]


@dataclass(frozen=True)
class Ramp:
    """How the layers' experts grow together: at level t, layer l would have `start + t * slopes[l]` of them.

    Attributes:
        start: Experts of a layer whose slope is 0, not more than the least that the limits allow.
        slopes: One per layer, zero or more. Where none is above 0, all grow alike.
    """

    start: int
    slopes: Sequence[Fraction]


@dataclass(frozen=True)
class Limits:
    """The least and the most experts of one layer, the base MLP included; `max_experts` None: no most."""

    min_experts: int
    max_experts: int | None

    def check_total(self, total: int, num_layers: int) -> None:
        """Raise `UserError` with the possible range if no allocation of that total keeps to the limits."""
        least = num_layers * self.min_experts
        most = None if self.max_experts is None else num_layers * self.max_experts
        if total < least or (most is not None and total > most):
            possible = f"{least} or more" if most is None else f"{least} to {most}"
            bounds = f"{self.min_experts} to {self.max_experts}" if most is not None else f"at least {self.min_experts}"
            raise UserError(
                f"--total-experts {total} is not possible: {num_layers} layers of {bounds} experts (--min-experts, "
                f"--max-experts) have {possible} in all, the original MLPs included"
            )


def fit_total(ramp: Ramp, limits: Limits, total: int) -> list[int]:
    """Experts per layer that sum to `total`, by the largest remainder, exactly and without chance.

    Each layer follows the ramp up to the one level at which all layers, kept within the limits, sum to the total; what
    the limits cut off thereby goes to the others. The numbers are floored, and the missing experts go to the largest
    fractions, of equal ones to the lower layer. No layer has fewer experts than one with a smaller slope.

    Raises:
        UserError: if the limits allow no such total; names the range that they allow.
    """
    limits.check_total(total, len(ramp.slopes))
    ideal = _ideal_experts(ramp, limits, total)
    num_experts = [math.floor(experts) for experts in ideal]
    by_fraction = sorted(range(len(ideal)), key=lambda layer: (num_experts[layer] - ideal[layer], layer))
    for layer in by_fraction[: total - sum(num_experts)]:
        num_experts[layer] += 1
    return num_experts


def fit_parameters(ramp: Ramp, limits: Limits, shapes: MlpShapes, most_parameters: int) -> list[int]:
    """The allocation of the largest total that adds at most so many parameters.

    Raises:
        UserError: if not even one new expert fits; names what the smallest allocation adds.
    """
    if limits.max_experts == 1:
        raise UserError("--max-added-parameters with --max-experts 1: no layer could have a new expert")
    num_layers = len(ramp.slopes)
    least = max(num_layers * limits.min_experts, num_layers + 1)
    # Every new expert costs at least the smallest MLP.
    most = num_layers + most_parameters // min(shapes.mlp_parameters)
    if limits.max_experts is not None:
        most = min(most, num_layers * limits.max_experts)

    def lower_bound(total: int) -> int:
        floored = map(math.floor, _ideal_experts(ramp, limits, total))
        return sum(shapes.added_parameters(list(floored)))

    # The bound rises with the total. The cost need not, where layers differ in size: below, every total is tried.
    totals = range(least, most + 1)
    for total in reversed(totals[: bisect_right(totals, most_parameters, key=lower_bound)]):
        num_experts = fit_total(ramp, limits, total)
        if sum(shapes.added_parameters(num_experts)) <= most_parameters:
            return num_experts
    smallest = sum(shapes.added_parameters(fit_total(ramp, limits, least)))
    raise UserError(
        f"--max-added-parameters {most_parameters} is too small: the smallest allocation here, {least} experts "
        f"of which {least - num_layers} new, adds {smallest}"
    )


def _ideal_experts(ramp: Ramp, limits: Limits, total: int) -> list[Fraction]:
    """Fractional experts per layer, within the limits, that follow the ramp and sum to a possible total."""
    num_layers, low = len(ramp.slopes), limits.min_experts
    high = total - (num_layers - 1) * low if limits.max_experts is None else limits.max_experts
    slopes = ramp.slopes if any(ramp.slopes) else [Fraction(1)] * num_layers
    rising = sum(slope > 0 for slope in slopes)
    if rising * high + (num_layers - rising) * low < total:
        # All layers that the ramp lifts are full: the rest is for the others, in equal parts.
        rest = Fraction(total - rising * high, num_layers - rising)
        return [Fraction(high) if slope > 0 else rest for slope in slopes]

    def at(level: Fraction) -> list[Fraction]:
        return [min(max(ramp.start + level * slope, Fraction(low)), Fraction(high)) for slope in slopes]

    # Between two levels at which some layer meets a limit, the sum is linear.
    corners = sorted({(bound - ramp.start) / slope for slope in slopes if slope > 0 for bound in (low, high)})
    return at(_level(corners, lambda level: sum(at(level), Fraction(0)), Fraction(total)))


def _level(corners: Sequence[Fraction], height: Callable[[Fraction], Fraction], total: Fraction) -> Fraction:
    """Where `height`, which rises and is linear between the corners, reaches `total`."""
    above = bisect_left(corners, total, key=height)
    if above == 0:
        return corners[0]
    left, right = corners[above - 1], corners[above]
    bottom = height(left)
    return left + (right - left) * (total - bottom) / (height(right) - bottom)
