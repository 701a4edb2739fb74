"""Experts per layer that fit a total or a number of parameters, in proportion to scores or in whole experts."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from neuronmoe_plugins.allocation.experts import BlockShapes
from neuronmoe_plugins.blocks import ExpertTargets
from neuronmoe_plugins.errors import UserError


@dataclass(frozen=True)
class Ramp:
    """How the layers' experts grow together: at level t, layer l would have `start + t * slopes[l]` of them.

    Attributes:
        start: Experts of a layer whose slope is 0, not more than the least that the limits allow.
        slopes: One per layer, zero or more. Where none is above 0, all grow alike.
        whole: Whether layers grow by whole experts: each has what it has reached at the lowest level that spends the
            total, and no remainders are dealt out.
    """

    start: int
    slopes: Sequence[Fraction]
    whole: bool = False


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
    if ramp.whole:
        return _highest_averages(ramp, limits, num_experts, total)
    by_fraction = sorted(range(len(ideal)), key=lambda layer: (num_experts[layer] - ideal[layer], layer))
    for layer in by_fraction[: total - sum(num_experts)]:
        num_experts[layer] += 1
    return num_experts


def _highest_averages(ramp: Ramp, limits: Limits, reached: list[int], total: int) -> list[int]:
    """Experts that sum to `total` (D'Hondt's highest averages): the n-th above the start ranks as slope / n.

    Of equal ranks the larger slope comes first, then the layer with fewer experts, then the lower one.

    Args:
        ramp: The slopes, with the least experts as start.
        limits: The most experts.
        reached: The floors of the ideal experts, which no layer falls below and few are missing to.
        total: What they sum to in the end; possible within the limits.
    """
    experts = list(reached)
    layers = range(len(experts))

    def rank(layer: int) -> tuple[Fraction, Fraction, int, int]:
        above = experts[layer] - ramp.start + 1
        return ramp.slopes[layer] / above, ramp.slopes[layer], -above, -layer

    for _ in range(total - sum(experts)):
        open_layers = (each for each in layers if limits.max_experts is None or experts[each] < limits.max_experts)
        experts[max(open_layers, key=rank)] += 1
    return experts


def fit_parameters(ramp: Ramp, limits: Limits, shapes: BlockShapes, most_parameters: int) -> list[int]:
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


def equal_counts(
    planned: Sequence[int], scores: Sequence[Fraction], limits: Limits, fits: Callable[[list[int]], bool]
) -> list[int]:
    """The allocation nearest to an uneven one whose layers all have one count, or stay dense.

    Of all with as many new experts or fewer, the one with the most; of these the one that differs least from what was
    planned, added up over the layers; then the one with more mixtures. They are the layers with the most planned
    experts, of equal ones those with the higher scores, then the lower ones.

    Args:
        planned: Experts per layer, the base MLP included.
        scores: Of the layers.
        limits: The least and the most experts; with a least of 2 or more no layer stays dense.
        fits: Whether an allocation keeps to what else limits it.
    """
    layers, budget = range(len(planned)), sum(planned) - len(planned)
    best_first = sorted(layers, key=lambda layer: (-planned[layer], -scores[layer], layer))
    found = [list(planned)] if len(set(planned)) == 1 else []
    most = min(limits.max_experts or budget + 1, budget + 1)
    for count in range(max(2, limits.min_experts), most + 1):
        for mixtures in range(min(len(layers), budget // (count - 1)), 0, -1):
            chosen = set(best_first[:mixtures])
            experts = [count if layer in chosen else 1 for layer in layers]
            if min(experts) >= limits.min_experts and fits(experts):
                found.append(experts)
                break

    def rank(experts: list[int]) -> tuple[int, int, int]:
        apart = sum(abs(mine - other) for mine, other in zip(experts, planned, strict=True))
        return sum(experts), -apart, -max(experts)

    return max(found, key=rank, default=list(planned))


def fit_rank(
    num_experts: Sequence[int],
    shapes: BlockShapes,
    most_parameters: int,
    targets: ExpertTargets = ExpertTargets.MLP,
) -> tuple[int, str | None]:
    """The highest rank of new experts at which they and their routers add at most so many parameters.

    Args:
        num_experts: Experts per layer, the base MLP included.
        shapes: The model's, with those of the targets.
        most_parameters: What may be added.
        targets: What the experts change.

    Returns:
        The rank, and why it is no higher where that needs saying: no expert is larger than a copy of its MLP, or has a
        rank that attention cannot take.

    Raises:
        UserError: if no layer has a new expert, or not even those of rank 1 fit; names what these add.
    """

    def highest(of: ExpertTargets) -> int:
        ranks = zip(shapes.highest_ranks(of), num_experts, strict=True)
        return min((rank for rank, experts in ranks if experts > 1), default=0)

    if not highest(targets):
        raise UserError("--choose rank: no layer has a new expert whose rank could be chosen; allow more experts")

    def added(rank: int) -> int:
        of_rank = shapes.of_rank(rank, targets)
        assert of_rank is not None, "the widths are known"
        return sum(of_rank.added_parameters(num_experts))

    ranks = range(1, highest(targets) + 1)
    rank = bisect_right(ranks, most_parameters, key=added)
    if not rank:
        raise UserError(
            f"--max-added-parameters {most_parameters} is too small: these {sum(num_experts)} experts, of which "
            f"{sum(num_experts) - len(num_experts)} new, add {added(1)} at rank 1"
        )
    capped = rank == len(ranks) and added(rank + 1) <= most_parameters
    by_attention = targets is not ExpertTargets.MLP and rank == highest(ExpertTargets.ATTENTION)
    why = "have a higher rank than attention's linear layers" if by_attention else "be larger than copies of the MLPs"
    return rank, f"above rank {rank} the new experts would {why}" if capped else None


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
