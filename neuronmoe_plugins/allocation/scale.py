"""How layer scores are compressed before they become experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import Enum
from fractions import Fraction
from typing import TypeAlias

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
