"""From a value per token to a value per sentence, on the device where the values are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Pooling: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Values (batch, tokens, units) and mask, bool (batch, tokens), to float32 (batch, units).

Padding is filled, not multiplied by zero: it may hold NaN where attention saw no token.
"""


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens (paper, section 3.1)."""
    return (_total(values.float(), mask) / mask.sum(dim=1, keepdim=True)).float()


def maximum(values: Tensor, mask: Tensor) -> Tensor:
    """Largest value of the real tokens."""
    return values.float().masked_fill(~mask[..., None], -torch.inf).amax(dim=1)


def active_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Number of real tokens with a value above zero."""
    return ((values > 0) & mask[..., None]).sum(dim=1).float()


def sum_of_directions(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of the real tokens' unit vectors, whose dot products are sums of cosines over all pairs of tokens."""
    return _total(F.normalize(values.float(), dim=-1), mask).float()


def _total(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask[..., None], 0.0).sum(dim=1, dtype=torch.float64)
