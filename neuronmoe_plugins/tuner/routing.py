"""Routing of tokens to experts, and the record of it that losses and statistics read."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class LayerRouting:
    """What one mixture layer decided in one forward pass; tokens are batch x sequence, flattened.

    Attributes:
        router_logits: (tokens, num_experts).
        selected_experts: (tokens, topk) int64, best first.
        router_trainable: Whether the router's weight asks for a gradient.
        adapter_name: The adapter that was active.
    """

    router_logits: torch.Tensor
    selected_experts: torch.Tensor
    router_trainable: bool
    adapter_name: str


@dataclass
class RoutingRecorder:
    """Collects the routing of every mixture layer while `active`.

    Layers and model share one recorder. It is switched on only during the model's own forward, so the recomputation of
    activation checkpointing leaves no trace in it.
    """

    active: bool = False
    layers: dict[int, LayerRouting] = field(default_factory=dict)

    def start(self) -> None:
        """Forget the last forward pass and record the next."""
        self.layers = {}
        self.active = True

    def stop(self) -> dict[int, LayerRouting]:
        """Stop recording and hand out layer index -> routing, in layer order."""
        self.active = False
        layers, self.layers = self.layers, {}
        return dict(sorted(layers.items()))


def route(router_logits: torch.Tensor, topk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose each token's experts.

    The softmax runs in float32 over all experts. With `topk` >= 2 the chosen weights are renormalised to sum to 1; with
    1 the output is scaled by the expert's probability, which keeps a gradient on the router.

    Args:
        router_logits: (tokens, num_experts).
        topk: Experts per token, clamped to num_experts.

    Returns:
        Weights (tokens, topk) in float32 and expert indices (tokens, topk) int64, best first.
    """
    probabilities = torch.softmax(router_logits.float(), dim=-1)
    weights, selected_experts = probabilities.topk(min(topk, router_logits.shape[-1]), dim=-1)
    if topk > 1:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, selected_experts
