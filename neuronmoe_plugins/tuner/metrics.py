"""Means of losses and routing shares over training steps, for logs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch

from neuronmoe_plugins.tuner.counts import COUNT, RoutingCounter, RoutingCounts, read_counts, shares_for_logs
from neuronmoe_plugins.tuner.routing import LayerRouting


@dataclass
class MetricSums:
    """What training forwards added up, to be added up over processes too.

    Attributes:
        losses: Name -> (sum of values, number of values).
        routing: How often the layers chose each expert.
    """

    losses: dict[str, tuple[float, float]] = field(default_factory=dict)
    routing: RoutingCounts = field(default_factory=RoutingCounts.none)

    def named(self) -> dict[str, tuple[float, float]]:
        """All of it as name -> (sum, number), to be saved; :meth:`RoutingMetrics.add` takes each of them back."""
        return self.losses | self.routing.named()

    def means(self) -> dict[str, float]:
        """The means of the losses and the shares of :func:`shares_for_logs`; what has no item is left out."""
        losses = {name: total / number for name, (total, number) in self.losses.items() if number}
        return losses | shares_for_logs(self.routing)


class RoutingMetrics:
    """Sums since the last `pop`; they stay on their device until then."""

    def __init__(self) -> None:
        self._totals: dict[str, torch.Tensor] = {}
        self._weights: dict[str, torch.Tensor] = {}
        self._routing = RoutingCounter()

    def add(self, name: str, total: torch.Tensor, weight: torch.Tensor) -> None:
        """Add a sum of values, `total` (scalar), that stands for `weight` (scalar) of them to the mean of `name`."""
        total, weight = total.detach().double(), weight.double()
        self._totals[name] = self._totals[name] + total if name in self._totals else total
        self._weights[name] = self._weights[name] + weight if name in self._weights else weight

    def add_routing(
        self, layers: dict[int, LayerRouting], token_mask: torch.Tensor | None, old_language_mask: torch.Tensor | None
    ) -> None:
        """Count the experts that each layer chose.

        Args:
            layers: Layer index -> routing of one forward pass over a number of tokens.
            token_mask: (tokens,) bool, real tokens; all when not given.
            old_language_mask: (tokens,) bool, real old-language tokens, which are counted apart as well.
        """
        self._routing.add(layers, token_mask, old_language_mask)

    def pop(self) -> MetricSums:
        """What was added since the last call."""
        scalars = [*self._totals.values(), *self._weights.values()]
        on_cpu = _to_cpu([*scalars, *self._routing.counts.values()])
        numbers, tensors = [value.item() for value in on_cpu[: len(scalars)]], on_cpu[len(scalars) :]
        pairs = zip(numbers[: len(self._totals)], numbers[len(self._totals) :], strict=True)
        named = dict(zip(self._totals, pairs, strict=True))
        counted = {name: pair for name, pair in named.items() if name.startswith(COUNT)}
        losses = {name: pair for name, pair in named.items() if name not in counted}
        sums = MetricSums(losses, RoutingCounts.from_named(counted))
        for shapes, tensor in zip(self._routing.counts, tensors, strict=True):
            sums.routing = read_counts(shapes, tensor) + sums.routing
        self._totals, self._weights, self._routing = {}, {}, RoutingCounter()
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


def _to_cpu(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Bring tensors, of any devices, to the CPU in one transfer, as float64, which holds counts exactly."""
    if not tensors:
        return []
    flat = torch.cat([tensor.flatten().double().to(tensors[0].device) for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
