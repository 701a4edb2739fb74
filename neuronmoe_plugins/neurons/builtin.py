"""The metrics that come with the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from neuronmoe_plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from neuronmoe_plugins.neurons.metrics import Metric


@hookimpl
def register_metrics(register: Callable[[str, Metric], None]) -> None:
    from neuronmoe_plugins.neurons.average_precision import average_precision

    register("ap", average_precision)
