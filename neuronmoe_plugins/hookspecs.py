"""What a third party can add: each hook hands over a `register` function that takes a name and the thing itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from neuronmoe_plugins.allocation.strategies import AllocationStrategy
    from neuronmoe_plugins.feed_forward.family import FeedForwardFamily
    from neuronmoe_plugins.neurons.metrics import Metric

NAMESPACE = "neuronmoe_plugins"

hookspec = pluggy.HookspecMarker(NAMESPACE)
hookimpl = pluggy.HookimplMarker(NAMESPACE)


@hookspec
def register_metrics(register: Callable[[str, Metric], None]) -> None:
    """Add neuron metrics for `neuronmoe analyze --metric NAME`.

    A metric takes the pooled activations of one module (float32, samples x units), the language index of every sample
    (int, samples) and the number of languages, and returns scores (float64, languages x units), higher = more specific.
    Or it is a `neuronmoe_plugins.neurons.metrics.NeuronMetric`, which can observe activation functions instead of
    projections, choose neurons in its own way, and have its own defaults.
    """


@hookspec
def register_allocation_strategies(register: Callable[[str, AllocationStrategy], None]) -> None:
    """Add strategies for `neuronmoe allocate --strategy NAME`.

    An `AllocationStrategy` has a function that takes an origin (an analysis folder or a scores file) and the settings
    (source, targets, ..) and returns one score per decoder layer (finite, zero or more), and a rule from scores to
    experts, by default the paper's. Scales and budgets then work with it as with the built-in ones.
    """


@hookspec
def register_feed_forward_families(register: Callable[[str, FeedForwardFamily], None]) -> None:
    """Add kinds of MLPs that can become mixtures of experts.

    A `FeedForwardFamily` names an MLP's linear layers and activation function, and runs one expert.
    """
