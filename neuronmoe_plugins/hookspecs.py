"""What a third party can add: each hook hands over a `register` function that takes a name and the thing itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pluggy

NAMESPACE = "neuronmoe_plugins"

hookspec = pluggy.HookspecMarker(NAMESPACE)
hookimpl = pluggy.HookimplMarker(NAMESPACE)

Register: TypeAlias = Callable[[str, Any], None]

# What can be registered -> the hook that does.
HOOKS = {
    "metric": "register_metrics",
    "allocation strategy": "register_allocation_strategies",
    "feed-forward family": "register_feed_forward_families",
    "command": "register_commands",
    "report section": "register_report_sections",
}


@hookspec
def register_metrics(register: Register) -> None:
    """Add neuron metrics for `neuronmoe analyze --metric NAME`.

    A metric takes the pooled activations of one module (float32, samples x units), the language index of every sample
    (int, samples) and the number of languages, and returns scores (float64, languages x units), higher = more specific.
    Or it is a `neuronmoe_plugins.neurons.metrics.NeuronMetric`, which can observe activation functions instead of
    projections, choose neurons in its own way, and have its own defaults.
    """


@hookspec
def register_allocation_strategies(register: Register) -> None:
    """Add strategies for `neuronmoe allocate --strategy NAME`.

    A `neuronmoe_plugins.allocation.strategies.AllocationStrategy` has a function that takes an origin (an analysis
    folder or a scores file) and the settings (source, targets, ..) and returns one score per decoder layer (finite,
    zero or more), and a rule from scores to experts, by default the paper's. Scales and budgets then work with it as
    with the built-in ones.
    """


@hookspec
def register_feed_forward_families(register: Register) -> None:
    """Add kinds of MLPs that can become mixtures of experts.

    A `neuronmoe_plugins.feed_forward.family.FeedForwardFamily` names an MLP's linear layers and activation function,
    and runs one expert.
    """


@hookspec
def register_commands(register: Register) -> None:
    """Add commands, `neuronmoe NAME`.

    A command is a function that Typer can make one of: its parameters' annotations are the options, its docstring is
    the help. All commands' functions are imported for `neuronmoe --help`, so they import what they run when they run.
    """


@hookspec
def register_report_sections(register: Register) -> None:
    """Add sections to the page of `neuronmoe report`, after the built-in ones.

    A section is made by a function that takes what is reported, a `neuronmoe_plugins.report.run.Run`, and returns a
    `neuronmoe_plugins.report.parts.Section`, or None where it has nothing to say.
    """
