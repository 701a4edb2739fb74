"""A projection's operands in the dtype in which it is computed."""

from __future__ import annotations

import torch

from neuronmoe_plugins.tuner.experts.layer_experts import ExpertStack


def compute_dtype(stack: ExpertStack, name: str, device: torch.device) -> torch.dtype:
    """The dtype in which a projection is computed: its weight's, or autocast's, as for a linear layer."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return stack.weights[name].dtype


def stacked_operands(stack: ExpertStack, name: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A projection's weight (experts, out, in) and bias (experts, out) in the dtype in which it is computed."""
    dtype, bias = compute_dtype(stack, name, device), stack.weights.get(f"{name}_bias")
    return stack.weights[name].to(dtype), None if bias is None else bias.to(dtype)
