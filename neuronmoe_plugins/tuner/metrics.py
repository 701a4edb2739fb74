"""Means of losses and routing shares over training steps, for logs."""

from __future__ import annotations

from collections import defaultdict

import torch

from neuronmoe_plugins.tuner.routing import LayerRouting


class RoutingMetrics:
    """Sums of named values since the last `pop`; they stay on their device until then."""

    def __init__(self) -> None:
        self._totals: dict[str, torch.Tensor] = {}
        self._weights: dict[str, torch.Tensor] = {}

    def add(self, name: str, total: torch.Tensor, weight: torch.Tensor) -> None:
        """Add a sum of values, `total` (scalar), that stands for `weight` (scalar) of them to the mean of `name`."""
        total, weight = total.detach().double(), weight.double()
        self._totals[name] = self._totals[name] + total if name in self._totals else total
        self._weights[name] = self._weights[name] + weight if name in self._weights else weight

    def add_routing(
        self, layers: dict[int, LayerRouting], token_mask: torch.Tensor | None, old_language_mask: torch.Tensor | None
    ) -> None:
        """Count, per layer, the tokens whose most probable expert is expert 0.

        Args:
            layers: Layer index -> routing of one forward pass over a number of tokens.
            token_mask: (tokens,) bool, real tokens; all when not given.
            old_language_mask: (tokens,) bool, real old-language tokens, which are counted apart as well.
        """
        for layer_index, routing in layers.items():
            on_base = routing.selected_experts[:, 0] == 0
            mask = torch.ones_like(on_base) if token_mask is None else token_mask.to(on_base.device)
            self.add(f"expert0_share/layer_{layer_index}", (on_base & mask).sum(), mask.sum())
            if old_language_mask is not None:
                mask = old_language_mask.to(on_base.device)
                self.add(f"expert0_share_old/layer_{layer_index}", (on_base & mask).sum(), mask.sum())

    def pop(self) -> dict[str, tuple[float, float]]:
        """Name -> (sum of values, number of values) since the last call."""
        sums = {name: (total.item(), self._weights[name].item()) for name, total in self._totals.items()}
        self._totals, self._weights = {}, {}
        return sums


class RoutingShares(dict[int, torch.Tensor]):
    """Layer index -> (num_experts,) float64: the share of tokens whose most probable expert is e, over all passes."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[int, torch.Tensor] = defaultdict(lambda: torch.zeros(1, dtype=torch.float64))

    def add(self, layers: dict[int, LayerRouting], token_mask: torch.Tensor | None) -> None:
        """Count one forward pass; `token_mask` as in :class:`RoutingMetrics`."""
        for layer_index, routing in layers.items():
            best = routing.selected_experts[:, 0]
            if token_mask is not None:
                best = best[token_mask.to(best.device)]
            counts = torch.bincount(best, minlength=routing.router_logits.shape[-1]).double().cpu()
            self._counts[layer_index] = self._counts[layer_index] + counts
            total = self._counts[layer_index].sum()
            self[layer_index] = self._counts[layer_index] / total.clamp(min=1)
