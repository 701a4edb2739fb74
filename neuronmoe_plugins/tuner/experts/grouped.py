"""All experts of a stack in one kernel per projection, without waiting for the device; best on CUDA."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from neuronmoe_plugins.tuner.experts.stacks import (
    Experts,
    ExpertStack,
    LayerExperts,
    compute_dtype,
    stacked_operands,
)
from neuronmoe_plugins.tuner.experts.weights import weight_names

# Each row of an operand begins at a multiple of so many bytes.
ALIGNMENT = 16
LEAST_CAPABILITY = (8, 0)


def run_grouped(
    tokens: torch.Tensor, weights: torch.Tensor, selected_experts: torch.Tensor, experts: LayerExperts
) -> torch.Tensor:
    """Sort the choices by expert and run each stack, and the base as a stack of one, by grouped matrix products.

    How many rows an expert has stays on the device. So every stack has as many as it might need, those of all tokens,
    and what is beyond its share is computed by nobody and masked.

    The arguments are those of :func:`~neuronmoe_plugins.tuner.experts.run_experts`.
    """
    num_tokens, topk = selected_experts.shape
    flat, factors = selected_experts.flatten(), weights.flatten().to(tokens.dtype)
    order = flat.argsort(stable=True)
    # One more for choices that are not used; bincount would wait for the device.
    counts = flat.new_zeros(len(experts) + 1).scatter_add_(0, flat, torch.ones_like(flat))
    ends = counts.cumsum(0)
    mixed, first = torch.zeros_like(tokens), 0
    for stack in (_base_stack(experts), *experts.stacks):
        start = ends[first - 1] if first else ends.new_zeros(())
        own_ends = (ends[first : first + len(stack)] - start).int()
        first += len(stack)
        row = torch.arange(num_tokens * min(topk, len(stack)), device=tokens.device)
        is_used = (row < own_ends[-1]).unsqueeze(-1)
        choice = order.index_select(0, (row + start).clamp(max=len(order) - 1))
        token_index = choice // topk
        states = torch.where(is_used, tokens.index_select(0, token_index), 0)
        output = experts.run_together(states, partial(_project, stack, own_ends))
        # Masked before it is weighted, because nothing times an undefined number need be nothing.
        output = torch.where(is_used, output.to(tokens.dtype), 0) * factors.index_select(0, choice).unsqueeze(-1)
        mixed = mixed.index_add(0, token_index, output)
    return mixed


def _project(stack: ExpertStack, ends: torch.Tensor, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """Apply a projection.

    Args:
        stack: The experts.
        ends: (experts,) int32, the row after each expert's last.
        name: The projection.
        inputs: (rows, in), sorted by expert.

    Returns:
        (rows, out) in the weight's dtype, or autocast's; after the last end anything, and so in its gradient.
    """
    weight, bias = stacked_operands(stack, name, inputs.device)
    output: torch.Tensor = F.grouped_mm(inputs.to(weight.dtype), weight.transpose(-2, -1), offs=ends)
    if bias is None:
        return output
    row = torch.arange(len(inputs), device=inputs.device)
    expert = torch.searchsorted(ends, row, right=True).clamp(max=len(stack) - 1)
    # Rows after the last end must not add their gradient to a bias.
    return output + torch.where((row < ends[-1]).unsqueeze(-1), bias[expert], 0)


def why_not_grouped(tokens: torch.Tensor, experts: Experts) -> str | None:
    """Why grouped products are not possible for these hidden states (tokens, hidden) and experts; None if they are."""
    if not hasattr(F, "grouped_mm"):
        return f"torch {torch.__version__} has no grouped_mm yet"
    stacks, names = experts.stacks, tuple(experts.stacks[0].weights)
    if isinstance(experts, LayerExperts) and not experts.is_low_rank:  # the base is a part of the grouped products
        if reason := _why_not_base(experts):
            return reason
        stacks, names = (_base_stack(experts), *stacks), experts.family.projections
    dtypes, shapes = set(), set()
    for stack in stacks:
        for name in names:
            dtype = compute_dtype(stack, name, tokens.device)
            dtypes.add(dtype)
            shapes.add((stack.weights[name].shape[1:], dtype.itemsize))
    return _why_not_on(tokens.device, dtypes) or _why_not_shapes(shapes)


def _why_not_base(experts: LayerExperts) -> str | None:
    if experts.base_is_quantised:
        return "the base MLP is quantised"
    linears = [getattr(experts.base_layer, name) for name in experts.family.projections]
    has_hooks = any(_has_hooks(module) for module in (experts.base_layer, *linears))
    if has_hooks or any(type(linear) is not nn.Linear for linear in linears):
        return "the base MLP's layers do more than multiply by a weight"
    return None


def _why_not_on(device: torch.device, dtypes: set[torch.dtype]) -> str | None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return "the GPU is older than compute capability 8.0"
    if (device.type == "cuda" or torch.compiler.is_compiling()) and dtypes != {torch.bfloat16}:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        return f"it multiplies bfloat16 on a GPU and in compiled code, and the experts compute in {names}"
    return None


def _why_not_shapes(shapes: set[tuple[torch.Size, int]]) -> str | None:
    for shape, size in sorted(shapes):
        if any(length * size % ALIGNMENT for length in shape):
            return f"rows of a weight {tuple(shape)} are no multiple of {ALIGNMENT} bytes"
    return None


def _base_stack(experts: LayerExperts) -> ExpertStack:
    base, tensors = experts.base_layer, {}
    for name in weight_names(base, experts.family):
        linear: nn.Linear = getattr(base, name.removesuffix("_bias"))
        tensor = linear.bias if name.endswith("_bias") else linear.weight
        tensors[name] = tensor.unsqueeze(0)
    return ExpertStack(tensors)


def _has_hooks(module: nn.Module) -> bool:
    """Whether a module's call is more than its forward."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)
