"""A single token without gradients, as in decoding: whatever is done beside its experts shows in tokens per second."""

from __future__ import annotations

import torch

from neuronmoe_plugins.tuner.experts.layer_experts import Expert, LayerExperts


def run_one_token(
    tokens: torch.Tensor, weights: torch.Tensor, selected_experts: torch.Tensor, experts: LayerExperts
) -> torch.Tensor:
    """Run the token's experts one after the other; nothing needs sorting.

    The arguments are those of :func:`~neuronmoe_plugins.tuner.experts.choosing.run_experts`, with one token.
    """
    mixed: torch.Tensor | None = None
    for index, weight in zip(selected_experts[0].tolist(), weights[0].tolist(), strict=True):
        if index == len(experts):  # a choice that is not used; the first always is
            continue
        output = _expert(experts, index)(tokens).to(tokens.dtype)
        mixed = output * weight if mixed is None else mixed.add_(output, alpha=weight)
    assert mixed is not None
    return mixed


def _expert(experts: LayerExperts, index: int) -> Expert:
    if not index:
        return experts.run_base
    index -= 1
    for stack in experts.stacks:
        if index < len(stack):
            return experts.of_weights({name: weight[index] for name, weight in stack.weights.items()})
        index -= len(stack)
    raise IndexError(f"there is no expert {index} beyond those of the stacks")
