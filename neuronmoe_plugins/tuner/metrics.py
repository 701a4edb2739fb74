"""What training adds up for logs: means of losses, and how often the layers chose each expert.

A token makes up to top-k choices, no two of them alike. An expert's share is its share of all choices: the shares of a
layer sum to 1. Its share of first choices tells whom the router prefers where every token uses every expert. Padding,
and choices that a language group may not use, are not counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F  # noqa: N812

from neuronmoe_plugins.blocks import block_name, block_order
from neuronmoe_plugins.tuner.routing import LayerRouting

# What kinds of tokens are counted apart; "all" is their sum.
KINDS = ("untagged", "old", "new")
UNTAGGED, OLD, NEW, PADDING = range(4)

# How names of single counts begin, before layer, kind of token, choice and expert.
COUNT = "routing_count/"

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
# Layer index (or that of its attention, see `blocks.py`), topk and num_experts of each mixture layer, in their order.
LayerShapes = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class RoutingCounts:
    """How often the layers chose each expert.

    Attributes:
        shapes: The layers.
        choices: (kinds, layers, topk, experts), the last two as large as the largest layer's: how many tokens of the
            kind had the expert as their k-th choice, the best being the first.
    """

    shapes: LayerShapes
    choices: IntArray

    @classmethod
    def none(cls, shapes: LayerShapes = ()) -> RoutingCounts:
        """Those of no token."""
        topk, experts = (max((shape[place] for shape in shapes), default=0) for place in (1, 2))
        return cls(shapes, np.zeros((len(KINDS), len(shapes), topk, experts), dtype=np.int64))

    @property
    def layers(self) -> list[int]:
        """Indices of the layers."""
        return [layer for layer, _, _ in self.shapes]

    @property
    def is_tagged(self) -> bool:
        """Whether old and new languages were told apart."""
        return bool(self.choices[[OLD, NEW]].any())

    def __add__(self, other: RoutingCounts) -> RoutingCounts:
        """Both together. Layers may differ where adapters take turns: then each has the larger shape."""
        if self.shapes == other.shapes:
            return RoutingCounts(self.shapes, self.choices + other.choices)
        largest: dict[int, tuple[int, int]] = {}
        for layer, topk, experts in (*self.shapes, *other.shapes):
            known = largest.get(layer, (0, 0))
            largest[layer] = max(known[0], topk), max(known[1], experts)
        both = RoutingCounts.none(tuple((layer, *largest[layer]) for layer in sorted(largest, key=block_order)))
        for part in (self, other):
            _, _, topk, experts = part.choices.shape
            both.choices[:, [both.layers.index(layer) for layer in part.layers], :topk, :experts] += part.choices
        return both

    def named(self) -> dict[str, tuple[float, float]]:
        """Every count by a name of its own, with 0 beside it: a form in which sums of losses can be saved as well."""
        return {
            f"{COUNT}{self.layers[place]}/{KINDS[kind]}/{choice}/{expert}": (float(count), 0.0)
            for (kind, place, choice, expert), count in np.ndenumerate(self.choices)
            if count
        }

    @classmethod
    def from_named(cls, named: Mapping[str, tuple[float, float]]) -> RoutingCounts:
        """What :meth:`named` gave; of a layer's experts only those up to the last that was chosen are known."""
        counts = cls.none()
        for name, (count, _) in named.items():
            layer, kind, choice, expert = name.removeprefix(COUNT).split("/")
            one = cls.none(((int(layer), int(choice) + 1, int(expert) + 1),))
            one.choices[KINDS.index(kind), 0, int(choice), int(expert)] = int(count)
            counts += one
        return counts

    def of(self, tokens: str = "all") -> IntArray:
        """(layers, topk, experts) of the `old`, `new` or `untagged` tokens, or of `all`."""
        return self.choices.sum(axis=0) if tokens == "all" else self.choices[KINDS.index(tokens)]

    def users(self, tokens: str = "all") -> IntArray:
        """(layers, experts): how many tokens use each expert, by any of their choices."""
        return self.of(tokens).sum(axis=1)

    def firsts(self, tokens: str = "all") -> IntArray:
        """(layers, experts): how many tokens have each expert as their first choice."""
        return self.of(tokens)[:, :1].sum(axis=1)

    def num_tokens(self, tokens: str = "all") -> IntArray:
        """(layers,): number of tokens; each has a first choice."""
        return self.firsts(tokens).sum(axis=1)


def as_shares(counts: IntArray) -> FloatArray:
    """(layers, experts) counts as shares of each layer's sum; 0 where it has none."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def shares_for_logs(counts: RoutingCounts) -> dict[str, float]:
    """What a log says about the routing.

    Returns:
        Per layer `expert0_share/layer_{i}` and, if it had old-language tokens, `expert0_share_old/layer_{i}`: the share
        of their first choices that are expert 0. Then, per layer and expert, `expert_share/layer_{i}/expert_{e}`: the
        expert's share of all choices. A mixture in the attention of a layer is `layer_{i}_attention`.
    """
    named: dict[str, float] = {}
    for name, tokens in (("expert0_share", "all"), ("expert0_share_old", "old")):
        firsts = counts.firsts(tokens)
        for layer, shares, number in zip(counts.layers, as_shares(firsts), firsts.sum(axis=1), strict=True):
            if number:
                named[f"{name}/{_log_name(layer)}"] = float(shares[0])
    users = counts.users()
    for (layer, _, num_experts), shares, number in zip(counts.shapes, as_shares(users), users.sum(axis=1), strict=True):
        if number:
            by_expert = enumerate(shares[:num_experts].tolist())
            named |= {f"expert_share/{_log_name(layer)}/expert_{expert}": share for expert, share in by_expert}
    return named


def _log_name(block: int) -> str:
    return f"layer_{block_name(block).replace(' ', '_')}"


class RoutingCounter:
    """Counts on the device: a handful of operations for all layers of a forward pass together, and no transfer.

    Attributes:
        counts: For each set of layers that was active, usually one: (layers, topk, kinds and padding x bins) int64,
            where a layer's bins are its experts and then what is none.
    """

    def __init__(self) -> None:
        self.counts: dict[LayerShapes, torch.Tensor] = {}

    def add(
        self,
        layers: Mapping[int, LayerRouting],
        token_mask: torch.Tensor | None,
        old_language_mask: torch.Tensor | None,
    ) -> None:
        """Count one forward pass.

        Args:
            layers: Layer index -> routing of a number of tokens.
            token_mask: (tokens,) bool, real tokens; all when not given.
            old_language_mask: (tokens,) bool, old-language tokens; the others are in a new language. When it is not
                given, all are untagged.
        """
        choices = [routing.selected_experts for routing in layers.values()]
        experts = [routing.router_logits.shape[-1] for routing in layers.values()]
        topk, bins, device = max(chosen.shape[1] for chosen in choices), max(experts) + 1, choices[0].device
        padded = [_with_columns(chosen.to(device), topk, bins - 1) for chosen in choices]
        kinds = _kinds(len(choices[0]), device, token_mask, old_language_mask)
        index = (torch.stack(padded) + (kinds * bins).unsqueeze(-1)).transpose(1, 2)
        topks = (chosen.shape[1] for chosen in choices)
        shapes = tuple(zip(layers, topks, experts, strict=True))
        if shapes not in self.counts:
            self.counts[shapes] = index.new_zeros(len(layers), topk, (PADDING + 1) * bins)
        self.counts[shapes].scatter_add_(-1, index, index.new_ones(1, 1, 1).expand_as(index))


def read_counts(shapes: LayerShapes, counts: torch.Tensor) -> RoutingCounts:
    """A tensor of :class:`RoutingCounter`, on the CPU, without padding and what is no expert."""
    by_kind = counts.unflatten(-1, (PADDING + 1, -1)).permute(2, 0, 1, 3)[:PADDING, ..., :-1]
    choices = by_kind.numpy().astype(np.int64)
    for place, (_, _, num_experts) in enumerate(shapes):
        choices[:, place, :, num_experts:] = 0
    return RoutingCounts(shapes, choices)


def _with_columns(chosen: torch.Tensor, topk: int, value: int) -> torch.Tensor:
    """Add columns of `value` up to `topk`; without any to add, padding would copy."""
    missing = topk - chosen.shape[1]
    return F.pad(chosen, (0, missing), value=value) if missing else chosen


def _kinds(
    num_tokens: int, device: torch.device, token_mask: torch.Tensor | None, old_language_mask: torch.Tensor | None
) -> torch.Tensor:
    """(tokens,) int64, the kind of each token."""
    if old_language_mask is None:
        kinds = torch.full((num_tokens,), UNTAGGED, device=device)
    else:
        kinds = torch.where(old_language_mask.to(device), OLD, NEW)
    return kinds if token_mask is None else torch.where(token_mask.to(device), kinds, PADDING)


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
