"""Which of a batch's tokens count."""

from __future__ import annotations

import torch


def real_tokens(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """(batch, sequence) attention mask -> (tokens,) bool; None (all tokens) for masks of another form."""
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    return attention_mask.flatten().bool()


def old_language_tokens(old_language_mask: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(batch, sequence) bool or 0/1 mask -> (tokens,) bool, without padding."""
    old, real = old_language_mask.flatten().bool(), real_tokens(attention_mask)
    return old if real is None else old & real
