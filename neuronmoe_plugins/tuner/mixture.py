"""Runs each expert on its tokens and adds up what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def mix(
    tokens: torch.Tensor,
    weights: torch.Tensor,
    selected_experts: torch.Tensor,
    experts: Sequence[Callable[[torch.Tensor], torch.Tensor]],
) -> torch.Tensor:
    """Run each expert once on its tokens, sorted by expert, and add the weighted outputs up.

    Args:
        tokens: (tokens, hidden).
        weights: (tokens, topk).
        selected_experts: (tokens, topk) int64; an index beyond the experts is a choice that is not used.
        experts: Functions from (tokens, hidden) to the same shape.

    Returns:
        (tokens, hidden) in the dtype of `tokens`.
    """
    flat = selected_experts.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=len(experts))[: len(experts)].tolist()
    order = order[: sum(counts)]
    token_index = order // selected_experts.shape[1]
    # Experts without a token run on an empty slice, so that they too are in the graph and get a (zero) gradient.
    inputs = tokens[token_index].split(counts)
    outputs = [expert(states).to(tokens.dtype) for expert, states in zip(experts, inputs, strict=True)]
    mixed = torch.cat(outputs) * weights.flatten()[order].unsqueeze(-1).to(tokens.dtype)
    return torch.zeros_like(tokens).index_add_(0, token_index, mixed)
