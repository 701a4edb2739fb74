"""An allocation of English and Greek, as `neuronmoe allocate` would have written it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neuronmoe_plugins.allocation.allocation import Allocation


def save_allocation(path: Path, num_experts: Sequence[int], layer_scores: Sequence[float] = ()) -> None:
    """Write an allocation.yaml with these experts."""
    Allocation(
        num_experts=list(num_experts),
        layer_scores=list(layer_scores),
        min_experts=1,
        max_experts=max(num_experts),
        rounding="floor",
        strategy="neuron-diversity",
        source="en",
        targets=["el"],
        scores_from="scores.json",
    ).save(path)
