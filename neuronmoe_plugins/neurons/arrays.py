"""The arrays that pass between the steps of an analysis."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
IntArray: TypeAlias = NDArray[np.int64]
ScoreArray: TypeAlias = NDArray[np.float64]
ModuleKey: TypeAlias = tuple[int, str]
"""Decoder layer and the projection's name inside it, as in `(3, "mlp.gate_proj")`."""
