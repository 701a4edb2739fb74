"""What a neuron metric is: a score per unit and language, and the choice of neurons that follows from the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.arrays import FloatArray, IntArray, ScoreArray

Metric: TypeAlias = Callable[[FloatArray, IntArray, int], ScoreArray]


def require_finite(module: str, pooled: FloatArray, sample_names: Sequence[str]) -> None:
    """Raise `UserError` naming the module and the first sample with a NaN or infinite activation."""
    finite = np.isfinite(pooled)
    if finite.all():
        return
    sample, unit = (int(index) for index in np.argwhere(~finite)[0])
    raise UserError(
        f"{module}, unit {unit}: the activation for {sample_names[sample]} is {pooled[sample, unit]}; "
        "use --dtype float32 or leave that sentence out"
    )
