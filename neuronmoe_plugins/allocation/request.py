"""What `neuronmoe allocate` is told, and what a strategy sees of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from neuronmoe_plugins.allocation.experts import Choose, Combine, Placement, Rounding, Scale, Shape
from neuronmoe_plugins.blocks import ExpertTargets
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.options import declared_options, option
from neuronmoe_plugins.reading import is_count, is_total


def is_seed(value: Any) -> bool:
    """Whether `random` can be drawn with it."""
    return is_total(value) and value < 2**63


def _seed(flag: str, value: int) -> None:
    if not is_seed(value):
        raise UserError(f"{flag} is {value}; it must be a whole number from 0 on and below 2 to the power of 63")


def _of_64_bits(flag: str, value: int) -> None:
    if not is_count(value):
        raise UserError(f"{flag} is {value}; it must be at least 1 and below 2 to the power of 63")


@dataclass(frozen=True)
class AllocationRequest:
    """What `neuronmoe allocate` is told; None is what it was not told."""

    origin: Path = option("An analysis folder or a scores file.", metavar="DIR_OR_SCORES")
    source: str | None = option("The one that the model knows.", None, value="LANGUAGE")
    targets: tuple[str, ...] = option("To learn; may be repeated.", (), flag="target", value="LANGUAGE")
    strategy: str = option(
        "neuron-diversity, source-only, layer-similarity, gradient, gradient-ratio, spectral, parameter-deviation, "
        "knock-out, shape, uniform, or a plugin's.",
        "neuron-diversity",
    )
    combine: Combine | None = option(
        "The languages' neurons together: union, or mean: source + mean over the targets.", None, shown="union"
    )
    scale: Scale | None = option(
        "What a score counts as; sqrt and log keep one outlier layer from taking nearly all experts.",
        None,
        shown="linear",
    )
    placement: Placement | None = option(
        "Of scores to layers: linear as in the paper, or top: one new expert in each of the best layers.",
        None,
        shown="the strategy's own",
    )
    rounding: Rounding | None = option("Of scores to experts; floor gives the paper's lists.", None, shown="floor")
    min_experts: int | None = option("Least experts of a layer, the original MLP included.", None, shown="1")
    max_experts: int | None = option(
        "Most experts of a layer.", None, shown="6; layer-similarity none", check=_of_64_bits
    )
    budget: int | None = option(
        "For layer-similarity: experts to share out; each layer's part is rounded up.", None, check=_of_64_bits
    )
    shape: Shape | None = option("For shape: which layers get more; even spreads them, random draws.", None)
    seed: int | None = option("For --shape random: the same seed draws the same layers.", None, check=_seed)
    total_experts: int | None = option("Exactly so many in all, original MLPs included.", None, check=_of_64_bits)
    max_added_parameters: int | None = option(
        "As many experts as fit into so many new parameters.", None, check=_of_64_bits
    )
    choose: Choose | None = option(
        "What --max-added-parameters is spent on: experts, or rank, the highest that fits.", None, shown="experts"
    )
    expert_rank: int | None = option(
        "Rank of the new experts, low-rank deltas on the MLPs; without it they are copies.", None, check=_of_64_bits
    )
    expert_targets: ExpertTargets | None = option(
        "What experts of low rank change: MLPs, attention, or both, with a router each.", None, shown="mlp"
    )
    equal_experts: bool = option("Give layers one and the same count, or none: exported at no cost.", False)


# Those that every strategy heeds, or that are what it is asked for.
ALWAYS_HEEDED = (
    *("origin", "source", "targets", "strategy", "total_experts", "max_added_parameters", "expert_rank"),
    *("expert_targets", "equal_experts"),
)
HEEDED_BY_SOME = tuple(each.name for each, _ in declared_options(AllocationRequest) if each.name not in ALWAYS_HEEDED)


@dataclass(frozen=True)
class Settings(AllocationRequest):
    """A request with its blanks filled in, as a strategy sees it.

    Attributes:
        used: The options of `HEEDED_BY_SOME` that have an effect here.
    """

    scale: Scale = Scale.LINEAR
    rounding: Rounding = Rounding.FLOOR
    combine: Combine = Combine.UNION
    expert_targets: ExpertTargets = ExpertTargets.MLP
    min_experts: int = 1
    used: frozenset[str] = frozenset()

    def required_max_experts(self) -> int:
        """The most experts of a layer; raises `UserError` if there is no limit."""
        if self.max_experts is None:
            raise UserError(f"--strategy {self.strategy} needs --max-experts N")
        return self.max_experts

    def recorded(self) -> dict[str, Any]:
        """The options of `HEEDED_BY_SOME` for `allocation.yaml`: None where they have no effect."""
        values = {name: getattr(self, name) if name in self.used else None for name in HEEDED_BY_SOME}
        return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
