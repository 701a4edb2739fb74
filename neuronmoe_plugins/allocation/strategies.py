"""What an allocation strategy is, and the paper's: neuron diversity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from neuronmoe_plugins import plugins
from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.allocation.experts import Rounding, scale_experts
from neuronmoe_plugins.allocation.scores import layer_scores

DEFAULT_STRATEGY = "neuron-diversity"


@dataclass(frozen=True)
class AllocationRequest:
    """What `neuronmoe allocate` is told."""

    origin: Path
    """Folder of an analysis, or a scores file."""
    source: str | None = None
    targets: tuple[str, ...] = ()
    min_experts: int = 1
    max_experts: int = 6
    rounding: Rounding = Rounding.FLOOR


AllocationStrategy: TypeAlias = Callable[[AllocationRequest], Allocation]


def allocate(request: AllocationRequest, strategy: str = DEFAULT_STRATEGY) -> Allocation:
    """Allocate experts with the strategy of that name; raises `UserError` for bad input."""
    chosen: AllocationStrategy = plugins.choose("strategy", strategy, plugins.allocation_strategies())
    return chosen(request)


def neuron_diversity(request: AllocationRequest) -> Allocation:
    """Experts in proportion to the distinct language-specific neurons of each layer (paper, Eq. 2 to 4)."""
    scores = layer_scores(request.origin, request.source, request.targets)
    plan = scale_experts(scores, request.min_experts, request.max_experts, request.rounding)
    return Allocation(
        num_experts=plan.num_experts,
        layer_scores=scores,
        min_experts=request.min_experts,
        max_experts=request.max_experts,
        rounding=request.rounding.value,
        strategy=DEFAULT_STRATEGY,
        source=request.source,
        targets=list(request.targets),
        scores_from=str(request.origin),
        note=plan.note,
    )
