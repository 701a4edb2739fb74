"""Load balance over a batch that several processes share, each with a part of its sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import distributed

from neuronmoe_plugins.tuner.losses import count_choices
from neuronmoe_plugins.tuner.routing import LayerRouting


@dataclass(frozen=True)
class SharedBatch:
    """What all processes' parts of a batch count together.

    Attributes:
        choice_shares: Layer index -> (E,) float32, f_e of :func:`~neuronmoe_plugins.tuner.losses.load_balancing_loss`.
        tokens: Scalar, real tokens of this process.
        all_tokens: Scalar, those of all processes; at least 1.
        all_items: Scalar, labels of all processes.
    """

    choice_shares: dict[int, torch.Tensor]
    tokens: torch.Tensor
    all_tokens: torch.Tensor
    all_items: torch.Tensor

    @classmethod
    def count(
        cls, layers: Mapping[int, LayerRouting], token_mask: torch.Tensor | None, items: torch.Tensor
    ) -> SharedBatch:
        """Add the counts of all processes up, in one reduction; every process has to call it.

        With f_e over all of them the loss is linear in what each process computes, so that the parts add up to the loss
        of the whole batch (global-batch load balancing, Qiu et al. 2025).

        Args:
            layers: Layer index -> routing of this process's part.
            token_mask: (tokens,) bool, its real tokens; all when not given.
            items: Scalar, its labels.
        """
        choices = [count_choices(r.selected_experts, r.router_logits.shape[-1], token_mask) for r in layers.values()]
        num_tokens = len(next(iter(layers.values())).selected_experts)
        tokens = items.new_tensor(num_tokens) if token_mask is None else token_mask.sum().to(items)
        counts = torch.cat([*(count.to(items.device) for count in choices), tokens.view(1), items.view(1)]).double()
        distributed.all_reduce(counts)
        *all_choices, all_tokens, all_items = counts.split([*map(len, choices), 1, 1])
        all_tokens = all_tokens.clamp(min=1)
        shares = [(choice / all_tokens).float() for choice in all_choices]
        return cls(dict(zip(layers, shares, strict=True)), tokens, all_tokens.squeeze(), all_items.squeeze())
