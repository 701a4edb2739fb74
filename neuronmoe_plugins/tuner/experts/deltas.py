"""What experts of low rank add to the rows of a mixture, by one slice of rows per expert or by grouped products.

Shapes: rows are choices, sorted by expert, those of the base first; A is (experts, rank, in), B (experts, out, rank).
Delta rows are those of the experts beside the base.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from neuronmoe_plugins.tuner.experts.rows import AllRows, Rows, SortedRows
from neuronmoe_plugins.tuner.experts.sorted import SlicedStack, fill_gradients, slices, sort_by_expert
from neuronmoe_plugins.tuner.experts.stacks import DOWN, UP, Experts, ExpertStack, stacked_operands


class Deltas(ABC):
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
    def of_all(self, values: torch.Tensor) -> torch.Tensor:
        """Of delta rows, those of all rows: 0 where there is no delta."""

    @abstractmethod
    def add(self, name: str, low: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The rows (rows, out), which may be changed in place, with what the low-rank activations add to them."""

    @abstractmethod
    def _project(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Delta rows by one of the experts' tensors."""


class Choices(NamedTuple):
    """Sorted choices: their rows, the weight of each (rows, 1), 0 where it is not used, and the deltas."""

    rows: Rows
    factors: torch.Tensor
    deltas: Deltas


def sort_choices(weights: torch.Tensor, selected_experts: torch.Tensor, experts: Experts, grouped: bool) -> Choices:
    """The choices sorted by expert.

    Args:
        weights: (tokens, topk).
        selected_experts: (tokens, topk) int64; an index beyond the experts is a choice that is not used.
        experts: All but the base of low rank.
        grouped: Whether the deltas are computed by grouped products that do not wait for the device. Where tokens may
            choose all experts, nothing else waits either.
    """
    if selected_experts.shape[1] == len(experts):
        return _all_choices(weights, selected_experts, experts)
    return (_on_device if grouped else _by_slices)(weights, selected_experts, experts)


def _all_choices(weights: torch.Tensor, selected_experts: torch.Tensor, experts: Experts) -> Choices:
    """Where each token may choose all experts nothing has to be sorted; a choice that is not used has weight 0."""
    num_tokens, num_experts = selected_experts.shape
    # One more for choices that are not used.
    factors = weights.new_zeros(num_tokens, num_experts + 1).scatter(1, selected_experts, weights)
    deltas = _SlicedDeltas(experts.stacks, [num_tokens] * num_experts)
    rows = AllRows(num_tokens, num_experts, weights.device)
    return Choices(rows, factors[:, :num_experts].t().reshape(-1, 1), deltas)


class _SlicedDeltas(Deltas):
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

    def of_all(self, values: torch.Tensor) -> torch.Tensor:
        return F.pad(values, (0, 0, self._first, 0))

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
def _by_slices(weights: torch.Tensor, selected_experts: torch.Tensor, experts: Experts) -> Choices:
    order, counts = sort_by_expert(selected_experts, len(experts))
    factors = weights.flatten().index_select(0, order).unsqueeze(-1)
    return Choices(SortedRows(order, selected_experts.shape), factors, _SlicedDeltas(experts.stacks, counts))


class _GroupedDeltas(Deltas):
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

    def of_all(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def add(self, name: str, low: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return rows + self.high(name, low)

    def _project(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        parts = [stacked_operands(stack, name, rows.device)[0] for stack in self._stacks]
        weight = torch.cat([parts[0].new_zeros(1, *parts[0].shape[1:]), *parts])
        return F.grouped_mm(rows.to(weight.dtype), weight.transpose(-2, -1), offs=self._ends)


def _on_device(weights: torch.Tensor, selected_experts: torch.Tensor, experts: Experts) -> Choices:
    flat, factors = selected_experts.flatten(), weights.flatten()
    # A choice that is not used is one of the base with no weight, so that every row is some expert's.
    is_used = flat < len(experts)
    flat, factors = torch.where(is_used, flat, 0), torch.where(is_used, factors, 0)
    order = flat.argsort(stable=True)
    # bincount would wait for the device.
    counts = flat.new_zeros(len(experts)).scatter_add_(0, flat, torch.ones_like(flat))
    deltas = _GroupedDeltas(experts.stacks, counts.cumsum(0).int())
    rows = SortedRows(order, selected_experts.shape)
    return Choices(rows, factors.index_select(0, order).unsqueeze(-1), deltas)
