"""The allocation strategies that come with the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from neuronmoe_plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from neuronmoe_plugins.allocation.strategies import AllocationStrategy


@hookimpl
def register_allocation_strategies(register: Callable[[str, AllocationStrategy], None]) -> None:
    from neuronmoe_plugins.allocation import strategies

    register("neuron-diversity", strategies.neuron_diversity)
    register("source-only", strategies.source_only)
    register("layer-similarity", strategies.layer_similarity)
    register("uniform", strategies.uniform)
