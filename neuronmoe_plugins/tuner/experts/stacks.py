"""A layer's experts: the base MLP, and stacks of full copies or of low-rank deltas on it.

Shapes: hidden states are (tokens, hidden); an expert's weights (out, in) and biases (out,), those of a stack
(experts, out, in) and (experts, out). Of low rank, W_e = W + scaling B_e A_e with A (rank, in) and B (out, rank).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from neuronmoe_plugins.feed_forward.family import FeedForwardFamily, Projection

# Tensors of a low-rank delta, as PEFT's LoRA names them: A (rank, in) and B (out, rank).
DOWN, UP = "_lora_A", "_lora_B"


class LinearLayers(Protocol):
    """Says which linear layers of a block its experts change."""

    @property
    def projections(self) -> tuple[str, ...]:
        """Their names in the block."""


def low_rank_names(family: LinearLayers) -> tuple[str, ...]:
    """Names of the tensors that one expert of low rank holds: A and B of each projection."""
    return tuple(f"{name}{part}" for name in family.projections for part in (DOWN, UP))


def run_expert(
    hidden_states: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    family: FeedForwardFamily,
    act_fn: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Run one expert in its own dtype on hidden states (tokens, hidden); `weights` by :func:`weight_names`."""
    dtype = weights[family.projections[0]].dtype
    output: torch.Tensor = family.forward(hidden_states.to(dtype), partial(apply_projection, weights), act_fn)
    return output


def apply_projection(weights: Mapping[str, torch.Tensor], name: str, inputs: torch.Tensor) -> torch.Tensor:
    """Apply one projection of an expert, (tokens, in) to (tokens, out); `weights` by :func:`weight_names`."""
    return F.linear(inputs.to(weights[name].dtype), weights[name], weights.get(f"{name}_bias"))


def run_base_projection(base_layer: nn.Module, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """Apply one projection of the base MLP, (tokens, in) to (tokens, out), in its own dtype."""
    linear: nn.Linear = getattr(base_layer, name)
    # Quantised layers know the dtype in which they compute.
    output: torch.Tensor = linear(inputs.to(linear.weight.dtype) if linear.weight.is_floating_point() else inputs)
    return output


def apply_with_delta(
    base_layer: nn.Module, weights: Mapping[str, torch.Tensor], scaling: float, name: str, inputs: torch.Tensor
) -> torch.Tensor:
    """Apply one projection of an expert of low rank, (tokens, in) to (tokens, out)."""
    down, up = weights[f"{name}{DOWN}"], weights[f"{name}{UP}"]
    delta = F.linear(F.linear(inputs.to(down.dtype), down) * scaling, up)
    return run_base_projection(base_layer, name, inputs) + delta


Expert = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ExpertStack:
    """Consecutive experts whose weights are stacked.

    Attributes:
        weights: By :func:`~neuronmoe_plugins.tuner.experts.weights.weight_names`: (experts, out, in), biases
            (experts, out). Those of low rank by :func:`low_rank_names`: (experts, rank, in) and (experts, out, rank).
        scaling: What the low-rank product is multiplied by; 1 for copies.
    """

    weights: Mapping[str, torch.Tensor]
    scaling: float = 1.0

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    @property
    def is_trained(self) -> bool:
        """Whether a backward pass will need the gradients of these experts."""
        return torch.is_grad_enabled() and any(weight.requires_grad for weight in self.weights.values())

    @property
    def is_away(self) -> bool:
        """Whether some of the weights are on the meta device."""
        return any(weight.is_meta for weight in self.weights.values())

    def unbind(self) -> Iterator[dict[str, torch.Tensor]]:
        """The tensors of each expert."""
        # Not by indexing: the backward of `weight[e]` would make a full-size zero tensor for every expert.
        for tensors in zip(*(weight.unbind(0) for weight in self.weights.values()), strict=True):
            yield dict(zip(self.weights, tensors, strict=True))


@dataclass(frozen=True)
class Experts:
    """Expert 0, a block of the base model, and the others.

    Attributes:
        stacks: The experts beside the base, in their order; all of them copies, or all of low rank.
    """

    stacks: tuple[ExpertStack, ...]

    def __len__(self) -> int:
        return 1 + sum(map(len, self.stacks))

    @property
    def is_low_rank(self) -> bool:
        """Whether the experts beside the base are low-rank deltas on it."""
        return any(name.endswith(DOWN) for name in self.stacks[0].weights)


@dataclass(frozen=True)
class LayerExperts(Experts):
    """Expert 0, the base MLP, and the others.

    Attributes:
        base_layer: The MLP.
        base_is_quantised: Whether it holds something else than its weights in floating point.
        family: What kind of MLP all experts are.
        ends_in_projection: Whether what the MLP returns is what its last projection does.
    """

    base_layer: nn.Module
    base_is_quantised: bool
    family: FeedForwardFamily
    ends_in_projection: bool = False

    @property
    def act_fn(self) -> Callable[[Any], Any]:
        """The activation function, which all experts share."""
        activation: Callable[[Any], Any] = getattr(self.base_layer, self.family.activation)
        return activation

    def run_base(self, tokens: torch.Tensor) -> torch.Tensor:
        """Expert 0 on hidden states (tokens, hidden)."""
        # Quantised kernels need not work without rows.
        return tokens if self.base_is_quantised and not len(tokens) else self.base_layer(tokens)

    def runs(self) -> Iterator[Expert]:
        """All experts one by one, the base first, as functions of hidden states (tokens, hidden)."""
        yield self.run_base
        for projection in self.projections():
            yield partial(self.run_together, linear=projection)

    def projections(self) -> Iterator[Projection]:
        """The linear layers of each expert beside the base."""
        for stack in self.stacks:
            for weights in stack.unbind():
                yield self.of_weights(weights, stack.scaling)

    def of_weights(self, weights: Mapping[str, torch.Tensor], scaling: float) -> Projection:
        """The linear layers of the expert that has these tensors."""
        if self.is_low_rank:
            return partial(apply_with_delta, self.base_layer, weights, scaling)
        return partial(apply_projection, weights)

    def run_together(self, hidden_states: torch.Tensor, linear: Projection) -> torch.Tensor:
        """Several experts on all of their hidden states (rows, hidden) at once; `linear` tells whose rows are whose."""
        output: torch.Tensor = self.family.forward(hidden_states, linear, self.act_fn)
        return output


def compute_dtype(stack: ExpertStack, name: str, device: torch.device) -> torch.dtype:
    """The dtype in which a projection is computed: its weight's, or autocast's, as for a linear layer."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return stack.weights[name].dtype


def stacked_operands(stack: ExpertStack, name: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A projection's weight (experts, out, in) and bias (experts, out) in the dtype in which it is computed."""
    dtype, bias = compute_dtype(stack, name, device), stack.weights.get(f"{name}_bias")
    return stack.weights[name].to(dtype), None if bias is None else bias.to(dtype)
