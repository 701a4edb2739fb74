"""The metrics that come with the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from neuronmoe_plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from neuronmoe_plugins.neurons.metrics import Metric


@hookimpl
def register_metrics(register: Callable[[str, Metric], None]) -> None:
    """Hook: average precision, and language activation probability entropy."""
    from neuronmoe_plugins.neurons.average_precision import average_precision
    from neuronmoe_plugins.neurons.lape import LAPE
    from neuronmoe_plugins.neurons.metrics import NeuronMetric

    register(
        "ap",
        NeuronMetric(
            lambda pooled, samples: average_precision(pooled, samples.labels, samples.num_languages),
            one_against_rest=True,
            score_tensor=_average_precision_on_device,
        ),
    )
    register("lape", LAPE)


def _average_precision_on_device(pooled: Tensor, labels: Tensor, num_languages: int) -> Tensor:
    from neuronmoe_plugins.neurons.average_precision_torch import average_precision_torch

    return average_precision_torch(pooled, labels, num_languages)
