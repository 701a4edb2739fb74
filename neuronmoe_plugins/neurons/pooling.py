"""From a value per token to a value per sentence, on the device where the values are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class RealTokens:
    """Which tokens of a batch are no padding.

    Attributes:
        shape: Batch and tokens.
        counts: Real tokens of each sentence, int64 (batch, 1).
        padding: Places of the others among all tokens of the batch, int64.
    """

    shape: tuple[int, int]
    counts: Tensor
    padding: Tensor

    @classmethod
    def of(cls, attention_mask: Tensor) -> RealTokens:
        """The tokens where the mask (batch, tokens) is not zero."""
        batch, tokens = attention_mask.shape
        real = attention_mask.bool()
        return cls((batch, tokens), real.sum(dim=1, keepdim=True), (~real).flatten().nonzero().squeeze(1))

    def to(self, device: torch.device) -> RealTokens:
        """The same on another device."""
        return RealTokens(self.shape, self.counts.to(device), self.padding.to(device))

    def fill_padding(self, values: Tensor, fill: float) -> Tensor:
        """Values (batch, tokens, units) with this in place of what padding has, which may be NaN."""
        if not len(self.padding):
            return values
        filled = values.clone(memory_format=torch.contiguous_format)
        filled.view(-1, values.shape[-1])[self.padding] = fill
        return filled


Pooling: TypeAlias = Callable[[Tensor, RealTokens], Tensor]
"""Takes values (batch, tokens, units) and says which are real; returns float32 (batch, units)."""


def mean(values: Tensor, tokens: RealTokens) -> Tensor:
    """Mean over the real tokens (paper, section 3.1)."""
    return _total(values, tokens) / tokens.counts


def maximum(values: Tensor, tokens: RealTokens) -> Tensor:
    """Largest value of the real tokens."""
    return tokens.fill_padding(values, -torch.inf).amax(dim=1).float()


def active_tokens(values: Tensor, tokens: RealTokens) -> Tensor:
    """Number of real tokens with a value above zero."""
    filled = tokens.fill_padding(values, 0.0)
    # The second term is zero, or NaN where a value is not finite, which a comparison would hide.
    return (filled > 0).float().sum(dim=1) + 0 * filled.sum(dim=1, dtype=torch.float32)


def sum_of_directions(values: Tensor, tokens: RealTokens) -> Tensor:
    """Sum of the real tokens' unit vectors, whose dot products are sums of cosines over all pairs of tokens."""
    return _total(F.normalize(values.float(), dim=-1), tokens)


def _total(values: Tensor, tokens: RealTokens) -> Tensor:
    return tokens.fill_padding(values, 0.0).sum(dim=1, dtype=torch.float32)
