"""From one score per layer to experts per layer: the paper's rule and LayerMoE's shares, and what experts cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from typing import Any, TypeAlias

from neuronmoe_plugins.blocks import ExpertTargets
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


class Combine(str, Enum):
    """How neurons of several languages become one count per layer.

    `union`: distinct neurons of source and targets together (paper, Eq. 2). `mean`: those of the source plus the mean
    over the targets of each target's own, the published code's way with three targets; what languages share counts for
    each of them.
    """

    UNION = "union"
    MEAN = "mean"


class Shape(str, Enum):
    """Which layers of a model get more experts, whatever the model: forms to hold measured allocations to."""

    ENDS = "ends"
    MIDDLE = "middle"
    EARLY = "early"
    LATE = "late"
    EVEN = "even"
    RANDOM = "random"


class Placement(str, Enum):
    """How scores become places of experts: by the paper's linear rule, or one expert in each of the best layers."""

    LINEAR = "linear"
    TOP = "top"


class Choose(str, Enum):
    """What new parameters are spent on: as many experts as fit, or the highest rank of the experts that there are."""

    EXPERTS = "experts"
    RANK = "rank"


@dataclass(frozen=True)
class ExpertPlan:
    """Experts per layer, the base MLP included, and why they are what they are where that needs saying.

    `expert_rank` is that of the new ones; None for copies.
    """

    num_experts: list[int]
    note: str | None = None
    expert_rank: int | None = None


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
class BlockShapes:
    """The sizes of a model's MLPs and attention, from which added parameters follow.

    Attributes:
        hidden_size: Width of the hidden states, which the routers read.
        mlp_parameters: Weights and biases of one new expert of each layer, a copy of the MLP.
        mlp_widths: Inputs and outputs of each layer's MLP's linear layers, the parameters of a low-rank expert per
            rank; None if not known.
        mlp_ranks: The highest rank that these take, their least input or output.
        attention_widths: As `mlp_widths`, of the attention's linear layers.
        attention_ranks: As `mlp_ranks`, of these.
        routers: Of a layer that is a mixture; MLP and attention have one each.
    """

    hidden_size: int
    mlp_parameters: list[int]
    mlp_widths: list[int] | None = None
    mlp_ranks: list[int] | None = None
    attention_widths: list[int] | None = None
    attention_ranks: list[int] | None = None
    routers: int = 1

    def of_rank(self, rank: int | None, targets: ExpertTargets = ExpertTargets.MLP) -> BlockShapes | None:
        """The sizes where new experts have that rank instead of being copies (None); None if they are not known."""
        if rank is None:
            return self
        blocks = self._blocks(targets)
        widths = [of_layers for _, of_layers, _ in blocks if of_layers is not None]
        if len(widths) < len(blocks):
            return None
        parameters = [rank * sum(of_layer) for of_layer in zip(*widths, strict=True)]
        return replace(self, mlp_parameters=parameters, routers=len(widths))

    def highest_ranks(self, targets: ExpertTargets) -> list[int]:
        """Of each layer's experts: none is larger than a copy of the MLP, or has a rank that attention cannot take."""
        limits = [] if targets is ExpertTargets.MLP else [self.attention_ranks or []]
        if targets is not ExpertTargets.ATTENTION:
            widths = self.mlp_widths or []
            limits.append([copy // width for copy, width in zip(self.mlp_parameters, widths, strict=True)])
        return [min(of_layer) for of_layer in zip(*limits, strict=True)]

    def check_rank(self, num_experts: Sequence[int], rank: int, targets: ExpertTargets) -> None:
        """Raise `UserError` if a layer with new experts cannot have any of that rank, as far as sizes are known."""
        instead = {"MLP": "leave it out for full copies", "attention": "--expert-targets mlp"}
        for block, _, ranks in self._blocks(targets):
            for layer, (experts, most) in enumerate(zip(num_experts, ranks or [rank] * len(num_experts), strict=True)):
                if experts > 1 and rank > most:
                    raise UserError(
                        f"--expert-rank is {rank}, but the {block} of layer {layer} takes at most {most}; give a lower "
                        f"one, or {instead[block]}"
                    )

    def _blocks(self, targets: ExpertTargets) -> list[tuple[str, list[int] | None, list[int] | None]]:
        """Of what experts change: its name, and what is known of its widths and ranks."""
        mlp = ("MLP", self.mlp_widths, self.mlp_ranks)
        attention = ("attention", self.attention_widths, self.attention_ranks)
        return {ExpertTargets.MLP: [mlp], ExpertTargets.ATTENTION: [attention]}.get(targets, [mlp, attention])

    def recorded(self, rank: int | None, targets: str | None) -> dict[str, Any]:
        """What an allocation records of them, for experts of that rank (None: copies) that change these."""
        in_attention = targets not in (None, ExpertTargets.MLP)
        return {
            "hidden_size": self.hidden_size,
            "mlp_parameters": self.mlp_parameters,
            "mlp_widths": None if rank is None else self.mlp_widths,
            "attention_widths": self.attention_widths if in_attention else None,
        }

    def added_parameters(self, num_experts: Sequence[int]) -> list[int]:
        """New parameters of each layer: its new experts and, in a mixture, a row of each router for every expert.

        Args:
            num_experts: Experts per layer, the base MLP included; a layer with 1 stays dense and adds nothing.
        """
        return [
            (experts - 1) * copy + self.routers * experts * self.hidden_size if experts > 1 else 0
            for experts, copy in zip(num_experts, self.mlp_parameters, strict=True)
        ]
