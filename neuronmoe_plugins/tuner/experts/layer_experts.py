"""The experts of one mixture layer, as every implementation gets them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from neuronmoe_plugins.feed_forward.family import FeedForwardFamily, Projection
from neuronmoe_plugins.tuner.feed_forward import run_expert

Expert = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ExpertStack:
    """Consecutive experts whose weights are stacked.

    Attributes:
        weights: By :func:`~neuronmoe_plugins.tuner.feed_forward.weight_names`: (experts, out, in), biases
            (experts, out).
    """

    weights: Mapping[str, torch.Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    @property
    def is_trained(self) -> bool:
        """Whether a backward pass will need the gradients of these experts."""
        return torch.is_grad_enabled() and any(weight.requires_grad for weight in self.weights.values())

    def unbind(self) -> Iterator[dict[str, torch.Tensor]]:
        """The tensors of each expert."""
        # Not by indexing: the backward of `weight[e]` would make a full-size zero tensor for every expert.
        for tensors in zip(*(weight.unbind(0) for weight in self.weights.values()), strict=True):
            yield dict(zip(self.weights, tensors, strict=True))


@dataclass(frozen=True)
class LayerExperts:
    """Expert 0, the base MLP, and the others.

    Attributes:
        base_layer: The MLP.
        base_is_quantised: Whether it holds something else than its weights in floating point.
        family: What kind of MLP all experts are.
        stacks: The experts beside the base, in their order.
    """

    base_layer: nn.Module
    base_is_quantised: bool
    family: FeedForwardFamily
    stacks: tuple[ExpertStack, ...]

    def __len__(self) -> int:
        return 1 + sum(map(len, self.stacks))

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
        for stack in self.stacks:
            yield from map(self.of_weights, stack.unbind())

    def of_weights(self, weights: Mapping[str, torch.Tensor]) -> Expert:
        """The expert that has these tensors."""
        return partial(run_expert, weights=weights, family=self.family, act_fn=self.act_fn)

    def run_together(self, hidden_states: torch.Tensor, linear: Projection) -> torch.Tensor:
        """Several experts on all of their hidden states (rows, hidden) at once; `linear` tells whose rows are whose."""
        output: torch.Tensor = self.family.forward(hidden_states, linear, self.act_fn)
        return output
