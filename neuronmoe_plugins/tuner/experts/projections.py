"""One projection of several stacked experts at once, each on its own rows of one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from neuronmoe_plugins.tuner.experts.layer_experts import ExpertStack


def project_slices(stack: ExpertStack, counts: Sequence[int], name: str, inputs: torch.Tensor) -> torch.Tensor:
    """Apply a projection slice by slice.

    Args:
        stack: The experts.
        counts: How many of the rows each has.
        name: The projection.
        inputs: (rows, in), sorted by expert.

    Returns:
        (rows, out) in the weight's dtype, or autocast's.
    """
    inputs, weight, bias = operands(stack, name, inputs)
    output: torch.Tensor = _SlicedLinear.apply(inputs, weight, bias, counts)  # type: ignore[no-untyped-call]
    return output


def project_groups(stack: ExpertStack, ends: torch.Tensor, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """Apply a projection by `torch.nn.functional.grouped_mm`, which does not wait for the device.

    Args:
        stack: The experts.
        ends: (experts,) int32, the row after each expert's last.
        name: The projection.
        inputs: (rows, in), sorted by expert.

    Returns:
        (rows, out) in the weight's dtype, or autocast's; after the last end anything, and so in its gradient.
    """
    inputs, weight, bias = operands(stack, name, inputs)
    output: torch.Tensor = F.grouped_mm(inputs, weight.transpose(-2, -1), offs=ends)
    if bias is None:
        return output
    rows = torch.arange(len(inputs), device=inputs.device)
    expert = torch.searchsorted(ends, rows, right=True).clamp(max=len(stack) - 1)
    # Rows after the last end must not add their gradient to a bias.
    return output + torch.where((rows < ends[-1]).unsqueeze(-1), bias[expert], 0)


def operands(
    stack: ExpertStack, name: str, inputs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Inputs, weight and bias of a projection in one dtype, as a linear layer would have them under autocast."""
    weight, bias = stack.weights[name], stack.weights.get(f"{name}_bias")
    dtype, device = weight.dtype, inputs.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return inputs.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class _SlicedLinear(torch.autograd.Function):
    """Linear layers on consecutive slices; forward and gradients are written in place, not put together afterwards."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, counts: Sequence[int]
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.counts = counts
        output = inputs.new_empty(len(inputs), weight.shape[1])
        for expert, rows in _slices(counts):
            torch.mm(inputs[rows], weight[expert].t(), out=output[rows])
            if bias is not None:
                output[rows] += bias[expert]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias, _ = ctx.needs_input_grad
        of_inputs = torch.empty_like(inputs) if needs_inputs else None
        of_weight = torch.empty_like(weight) if needs_weight else None
        of_bias = weight.new_zeros(weight.shape[:2]) if needs_bias else None
        for expert, rows in _slices(ctx.counts, also_empty=True):
            given = gradient[rows]
            if of_inputs is not None:
                torch.mm(given, weight[expert], out=of_inputs[rows])
            if of_weight is not None:
                torch.mm(given.t(), inputs[rows], out=of_weight[expert])
            if of_bias is not None:
                of_bias[expert] = given.sum(0)
        return of_inputs, of_weight, of_bias, None


def _slices(counts: Sequence[int], also_empty: bool = False) -> Iterator[tuple[int, slice]]:
    """Each expert's rows."""
    start = 0
    for expert, count in enumerate(counts):
        if count or also_empty:
            yield expert, slice(start, start + count)
        start += count
