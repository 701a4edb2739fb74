"""Experts that are the base MLP with a low-rank delta on each of its linear layers: W_e = W + scaling B_e A_e.

The base's products are computed once per token, however many experts it has: those of the hidden states before the
tokens are sorted by expert, and the last one, which is linear, after the experts' activations are mixed. What an expert
adds is two thin products per layer (LoRA, arXiv 2106.09685, of one expert each).

Shapes: rows are choices, sorted by expert, those of the base first; A is (experts, rank, in), B (experts, out, rank).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from neuronmoe_plugins.tuner.experts.sorted import SlicedStack, fill_gradients, slices
from neuronmoe_plugins.tuner.experts.stacks import (
    DOWN,
    UP,
    Experts,
    ExpertStack,
    LayerExperts,
    run_base_projection,
    stacked_operands,
)


class _Deltas(ABC):
    """What the experts add to the rows.

    Args:
        stacks: The experts beside the base.
    """

    def __init__(self, stacks: Sequence[ExpertStack]) -> None:
        self._stacks = stacks

    def low(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Rows (rows, in) of all choices -> (delta rows, rank), scaled."""
        return self._project(f"{name}{DOWN}", self.own(rows)) * self._stacks[0].scaling

    def high(self, name: str, low: torch.Tensor) -> torch.Tensor:
        """Low-rank activations -> (delta rows, out)."""
        return self._project(f"{name}{UP}", low)

    def of_own(self, name: str, rows: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Delta rows (delta rows, in), and their factors (delta rows, 1) -> what they add (delta rows, out)."""
        low = self._project(f"{name}{DOWN}", rows)
        return self.high(name, low * (self._stacks[0].scaling * factors).to(low.dtype))

    @abstractmethod
    def own(self, values: torch.Tensor) -> torch.Tensor:
        """Of what all rows have, what those have that get a delta."""

    @abstractmethod
    def add(self, name: str, low: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The rows (rows, out), which may be changed in place, with what the low-rank activations add to them."""

    @abstractmethod
    def _project(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Delta rows by one of the experts' tensors."""


class _Choices(NamedTuple):
    """Sorted choices: the token of each (rows,), its weight (rows, 1), 0 where it is not used, and the deltas."""

    token_index: torch.Tensor
    factors: torch.Tensor
    deltas: _Deltas


def run_low_rank(
    tokens: torch.Tensor,
    weights: torch.Tensor,
    selected_experts: torch.Tensor,
    experts: LayerExperts,
    grouped: bool,
) -> torch.Tensor:
    """Run the base's linear layers once per token, and add each choice's delta.

    Args:
        tokens: (tokens, hidden).
        weights: (tokens, topk).
        selected_experts: (tokens, topk) int64; an index beyond the experts is a choice that is not used.
        experts: The layer's, all but the base of low rank.
        grouped: Whether the deltas are computed by grouped products that do not wait for the device.

    Returns:
        (tokens, hidden) in the dtype of `tokens`.
    """
    choices = (_on_device if grouped else _by_slices)(weights, selected_experts, experts)
    token_index, factors, deltas = choices
    states = tokens.index_select(0, token_index)
    last = experts.family.projections[-1] if experts.ends_in_projection else None

    def linear(name: str, inputs: torch.Tensor) -> torch.Tensor:
        if name == last:
            return _mix(name, inputs, choices, experts, len(tokens))
        if inputs is states:
            rows = run_base_projection(experts.base_layer, name, tokens).index_select(0, token_index)
        else:
            rows = run_base_projection(experts.base_layer, name, inputs)
        return deltas.add(name, deltas.low(name, inputs), rows)

    output: torch.Tensor = experts.family.forward(states, linear, experts.act_fn)
    if last is None:
        output = output.new_zeros(tokens.shape).index_add(0, token_index, output * factors.to(output.dtype))
    return output.to(tokens.dtype)


def _mix(name: str, inputs: torch.Tensor, choices: _Choices, experts: LayerExperts, num_tokens: int) -> torch.Tensor:
    """The last projection of activations (rows, in), weighted and added up to (tokens, hidden)."""
    token_index, factors, deltas = choices
    weighted = inputs * factors.to(inputs.dtype)
    mixed = weighted.new_zeros(num_tokens, inputs.shape[1]).index_add(0, token_index, weighted)
    output = run_base_projection(experts.base_layer, name, mixed)
    bias = getattr(experts.base_layer, name).bias
    if bias is not None:
        # It was added once, where each choice would have added its weight's share.
        total = factors.new_zeros(num_tokens, 1).index_add(0, token_index, factors)
        output = output + (bias * (total - 1).to(bias.dtype)).to(output.dtype)
    added = deltas.high(name, deltas.low(name, weighted))
    return output.to(added.dtype).index_add(0, deltas.own(token_index), added)


class AddedDeltas:
    """What tokens' experts add to the outputs of the base's linear layers: sum over e of w_e scaling B_e A_e x.

    Args:
        weights: (tokens, topk).
        selected_experts: (tokens, topk) int64; an index beyond the experts is a choice that is not used.
        experts: All but the base of low rank.
        grouped: Whether the deltas are computed by grouped products that do not wait for the device.
    """

    def __init__(self, weights: torch.Tensor, selected_experts: torch.Tensor, experts: Experts, grouped: bool) -> None:
        choices = (_on_device if grouped else _by_slices)(weights, selected_experts, experts)
        self._deltas = choices.deltas
        self._token_index = self._deltas.own(choices.token_index)
        self._rows = self._factors = self._deltas.own(choices.factors)
        self._inputs: torch.Tensor | None = None

    def __call__(self, name: str, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Add them to the output (..., out) of a linear layer for inputs (..., in), all tokens in their order."""
        if inputs is not self._inputs:  # query, key and value have the same
            self._inputs = inputs
            self._rows = inputs.reshape(-1, inputs.shape[-1]).index_select(0, self._token_index)
        added = self._deltas.of_own(name, self._rows, self._factors)
        rows = output.reshape(-1, output.shape[-1]).to(torch.promote_types(output.dtype, added.dtype))
        return rows.index_add(0, self._token_index, added.to(rows.dtype)).to(output.dtype).view_as(output)


class AllDeltas:
    """The same by all experts on all tokens, those that a token did not choose with weight 0: shapes are known before.

    The arguments are those of :class:`AddedDeltas`.
    """

    def __init__(self, weights: torch.Tensor, selected_experts: torch.Tensor, experts: Experts) -> None:
        # One more for choices that are not used.
        factors = weights.new_zeros(len(weights), len(experts) + 1).scatter(1, selected_experts, weights)
        self._factors = factors[:, 1:-1].split([len(stack) for stack in experts.stacks], dim=1)
        self._stacks = experts.stacks

    def __call__(self, name: str, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Add them to the output (..., out) of a linear layer for inputs (..., in), all tokens in their order."""
        rows = output
        for stack, factors in zip(self._stacks, self._factors, strict=True):
            down, up = stack.weights[f"{name}{DOWN}"], stack.weights[f"{name}{UP}"]
            low = torch.einsum("ti,eri->ter", inputs.reshape(-1, inputs.shape[-1]).to(down.dtype), down)
            low = low * (stack.scaling * factors).to(low.dtype).unsqueeze(-1)
            rows = rows + torch.einsum("ter,eor->to", low, up).view(*output.shape)
        return rows.to(output.dtype)


class _SlicedDeltas(_Deltas):
    """By one slice of rows per expert; see :mod:`~neuronmoe_plugins.tuner.experts.sorted`.

    Args:
        stacks: The experts beside the base.
        counts: Rows of each expert, the base included.
    """

    def __init__(self, stacks: Sequence[ExpertStack], counts: Sequence[int]) -> None:
        super().__init__(stacks)
        self._first, start = counts[0], 1
        self._counts: list[Sequence[int]] = []
        for stack in stacks:
            self._counts.append(counts[start : start + len(stack)])
            start += len(stack)
        self._sizes = list(map(sum, self._counts))

    def own(self, values: torch.Tensor) -> torch.Tensor:
        return values[self._first :]

    def add(self, name: str, low: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        rows, first = rows.to(torch.promote_types(rows.dtype, low.dtype)), self._first
        for stack, counts, part in zip(self._stacks, self._counts, low.split(self._sizes), strict=True):
            weight, _ = stacked_operands(stack, f"{name}{UP}", low.device)
            rows = _AddSlices.apply(rows, part.to(rows.dtype), weight.to(rows.dtype), counts, first)  # type: ignore[no-untyped-call]
            first += len(part)
        return rows

    def _project(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        outputs = [
            SlicedStack(stack, counts, [len(stack)]).project(0, name, part)
            for stack, counts, part in zip(self._stacks, self._counts, rows.split(self._sizes), strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class _AddSlices(torch.autograd.Function):
    """Add the linear layers of several experts, on consecutive slices of `low`, to rows from `first` on, in place."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, low: torch.Tensor, weight: torch.Tensor, counts: Sequence[int], first: int
    ) -> torch.Tensor:
        ctx.save_for_backward(low, weight)
        ctx.mark_dirty(rows)
        ctx.counts, ctx.first = counts, first
        own = rows[first:]
        for expert, part in slices(counts):
            own[part].addmm_(low[part], weight[expert].t())
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        low, weight = ctx.saved_tensors
        _, needs_low, needs_weight, *_ = ctx.needs_input_grad
        own = given[ctx.first :]
        of_low = torch.empty_like(low) if needs_low else None
        of_weight = torch.empty_like(weight) if needs_weight else None
        fill_gradients(own, low, weight, ctx.counts, of_low, of_weight)
        return given, of_low, of_weight, None, None


# How many rows an expert gets differs in every call, so that a compiled version would be made anew each time.
@torch.compiler.disable
def _by_slices(weights: torch.Tensor, selected_experts: torch.Tensor, experts: Experts) -> _Choices:
    flat = selected_experts.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=len(experts))[: len(experts)].tolist()
    order = order[: sum(counts)]
    factors = weights.flatten().index_select(0, order).unsqueeze(-1)
    return _Choices(order // selected_experts.shape[1], factors, _SlicedDeltas(experts.stacks, counts))


class _GroupedDeltas(_Deltas):
    """By one grouped product for all experts, of which the base's is nothing.

    Args:
        stacks: The experts beside the base.
        ends: (num_experts,) int32, the row after each expert's last.
    """

    def __init__(self, stacks: Sequence[ExpertStack], ends: torch.Tensor) -> None:
        super().__init__(stacks)
        self._ends = ends

    def own(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def add(self, name: str, low: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return rows + self.high(name, low)

    def _project(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        parts = [stacked_operands(stack, name, rows.device)[0] for stack in self._stacks]
        weight = torch.cat([parts[0].new_zeros(1, *parts[0].shape[1:]), *parts])
        return F.grouped_mm(rows.to(weight.dtype), weight.transpose(-2, -1), offs=self._ends)


def _on_device(weights: torch.Tensor, selected_experts: torch.Tensor, experts: Experts) -> _Choices:
    flat, factors = selected_experts.flatten(), weights.flatten()
    # A choice that is not used is one of the base with no weight, so that every row is some expert's.
    is_used = flat < len(experts)
    flat, factors = torch.where(is_used, flat, 0), torch.where(is_used, factors, 0)
    order = flat.argsort(stable=True)
    # bincount would wait for the device.
    counts = flat.new_zeros(len(experts)).scatter_add_(0, flat, torch.ones_like(flat))
    deltas = _GroupedDeltas(experts.stacks, counts.cumsum(0).int())
    return _Choices(order // selected_experts.shape[1], factors.index_select(0, order).unsqueeze(-1), deltas)
