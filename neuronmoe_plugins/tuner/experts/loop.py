"""The obvious implementation: expert by expert."""

from __future__ import annotations

import torch

from neuronmoe_plugins.tuner.experts.layer_experts import LayerExperts


def run_loop(
    tokens: torch.Tensor, weights: torch.Tensor, selected_experts: torch.Tensor, experts: LayerExperts
) -> torch.Tensor:
    """Find each expert's tokens, run it on them and add its weighted output to theirs.

    The arguments are those of :func:`~neuronmoe_plugins.tuner.experts.choosing.run_experts`.
    """
    mixed = torch.zeros_like(tokens)
    for index, run in enumerate(experts.runs()):
        token_index, choice = torch.where(selected_experts == index)
        # Also without a token, so that every expert is in the graph and gets a (zero) gradient.
        output = run(tokens[token_index]).to(tokens.dtype)
        mixed = mixed.index_add(0, token_index, output * weights[token_index, choice, None].to(tokens.dtype))
    return mixed
