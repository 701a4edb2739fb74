"""Rows sorted by expert, so that each expert has one slice; best on a CPU, and wherever its hooks must run.

The gradient of a whole stack is filled by those of its experts, in place: to stack them afterwards would copy as much
as all experts weigh, in every step.

Shapes: rows are choices, tokens x topk of them, sorted by expert; inputs are (rows, in), a stack's weights
(experts, out, in) and biases (experts, out).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from neuronmoe_plugins.tuner.experts.stacks import Expert, ExpertStack, LayerExperts, stacked_operands

# Consecutive experts run together, in one call for all of them, as long as their widest activations are at most so
# large: more of them would leave the processor's cache before they are used again.
PART_BYTES = 2**21


class _Part(NamedTuple):
    """Consecutive sorted rows, and what runs on them."""

    rows: int
    run: Expert
    is_needed: bool = False


# How many rows an expert gets differs in every call, so that a compiled version would be made anew each time.
@torch.compiler.disable
def run_sorted(
    tokens: torch.Tensor, weights: torch.Tensor, selected_experts: torch.Tensor, experts: LayerExperts
) -> torch.Tensor:
    """Sort the choices by expert, run each expert once on its slice, and add the weighted outputs up.

    The arguments are those of :func:`~neuronmoe_plugins.tuner.experts.run_experts`.
    """
    order, counts = sort_by_expert(selected_experts, len(experts))
    parts = [part for part in _parts(counts, experts) if part.rows or part.is_needed]
    sizes = [part.rows for part in parts]
    token_index = order // selected_experts.shape[1]
    inputs = tokens.index_select(0, token_index).split(sizes)
    factors = weights.flatten().index_select(0, order).unsqueeze(-1).to(tokens.dtype).split(sizes)
    mixed = torch.zeros_like(tokens)
    for part, states, factor, index in zip(parts, inputs, factors, token_index.split(sizes), strict=True):
        mixed.index_add_(0, index, part.run(states).to(tokens.dtype) * factor)
    return mixed


def sort_by_expert(selected_experts: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, list[int]]:
    """The places (rows,) of the choices that are used, sorted by expert, and how many each expert has."""
    flat = selected_experts.flatten()
    counts = torch.bincount(flat, minlength=num_experts)[:num_experts].tolist()
    return flat.argsort(stable=True)[: sum(counts)], counts


def _parts(counts: list[int], experts: LayerExperts) -> Iterator[_Part]:
    """The base, and each stack in parts of one or more experts."""
    yield _Part(counts[0], experts.run_base)
    first = 1
    for stack in experts.stacks:
        of_stack = counts[first : first + len(stack)]
        first += len(stack)
        sliced = SlicedStack(stack, of_stack, _part_sizes(of_stack, stack))
        for part, rows in enumerate(sliced.rows):
            run = partial(experts.run_together, linear=partial(sliced.project, part))
            # Of a stack that is trained, some expert takes part also without a row, to get a (zero) gradient.
            yield _Part(rows, run, stack.is_trained and not part)


def _part_sizes(counts: list[int], stack: ExpertStack) -> list[int]:
    """How many experts each part of a stack has."""
    widest = max(weight.shape[1] * weight.element_size() for weight in stack.weights.values())
    sizes, size = [0], 0
    for count in counts:
        size += count * widest
        if sizes[-1] and size > PART_BYTES:
            sizes.append(0)
            size = count * widest
        sizes[-1] += 1
    return sizes


class SlicedStack:
    """A stack whose experts run in parts, of one or more experts each.

    Args:
        stack: The experts.
        counts: How many rows each of them has.
        sizes: How many experts each part has.

    Attributes:
        rows: How many rows each part has.
    """

    def __init__(self, stack: ExpertStack, counts: Sequence[int], sizes: Sequence[int]) -> None:
        self._stack = stack
        ends = list(accumulate(sizes))
        self._ranges = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        self._counts = [counts[experts] for experts in self._ranges]
        self.rows = list(map(sum, self._counts))
        self._projections: dict[str, _Projection] = {}

    def project(self, part: int, name: str, inputs: torch.Tensor) -> torch.Tensor:
        """Apply a projection to the rows of one part.

        Args:
            part: Which part.
            name: The projection.
            inputs: (rows, in), sorted by expert.

        Returns:
            (rows, out) in the weight's dtype, or autocast's.
        """
        if name not in self._projections:
            self._projections[name] = self._split(name, inputs.device)
        weights, bias, gradient = self._projections[name]
        weight = weights[part]
        part_bias = None if bias is None else bias[self._ranges[part]]
        output: torch.Tensor = _SlicedLinear.apply(  # type: ignore[no-untyped-call]
            inputs.to(weight.dtype), weight, part_bias, self._counts[part], gradient, self._ranges[part]
        )
        return output

    def _split(self, name: str, device: torch.device) -> _Projection:
        weight, bias = stacked_operands(self._stack, name, device)
        if len(self._ranges) == 1:
            return _Projection((weight,), bias, None)
        gradient = _Gradient(weight)
        weights: tuple[torch.Tensor, ...] = _Parts.apply(weight, self._ranges, gradient)  # type: ignore[no-untyped-call]
        return _Projection(weights, bias, gradient)


class _Gradient:
    """The gradient of a stacked weight while the backwards of its parts fill it."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._shape, self._like = weight.shape, weight.new_empty(0)
        self._whole: torch.Tensor | None = None
        self._filled: set[int] = set()

    def part(self, experts: slice) -> torch.Tensor:
        """Uninitialised memory for the gradient of these experts: in place, or elsewhere if there is one already."""
        if experts.start in self._filled:
            return self._like.new_empty(experts.stop - experts.start, *self._shape[1:])
        if self._whole is None:
            self._whole = self._like.new_empty(self._shape)
        self._filled.add(experts.start)
        return self._whole[experts]

    def take(self, ranges: Sequence[slice], given: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """The whole gradient, with what autograd has added up for each part; let go, so that it need not be copied."""
        whole = self._like.new_empty(self._shape) if self._whole is None else self._whole
        self._whole, self._filled = None, set()
        for experts, gradient in zip(ranges, given, strict=True):
            place = whole[experts]
            if gradient is None:
                place.zero_()
            elif gradient.data_ptr() != place.data_ptr():
                place.copy_(gradient)
        return whole


class _Projection(NamedTuple):
    """A projection's weight by part, its bias, and the gradient of the weight to be, if there are several parts."""

    weights: tuple[torch.Tensor, ...]
    bias: torch.Tensor | None
    gradient: _Gradient | None


class _Parts(torch.autograd.Function):
    """Views of consecutive experts of a stacked weight."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, ranges: Sequence[slice], gradient: _Gradient
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.ranges, ctx.gradient = ranges, gradient
        return tuple(weight[experts] for experts in ranges)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return ctx.gradient.take(ctx.ranges, given), None, None


class _SlicedLinear(torch.autograd.Function):
    """Linear layers of several experts on consecutive slices of rows."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        counts: Sequence[int],
        gradient: _Gradient | None,
        experts: slice,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.counts, ctx.gradient, ctx.experts = counts, gradient, experts
        output = inputs.new_empty(len(inputs), weight.shape[1])
        for expert, rows in slices(counts):
            if rows.start == rows.stop:
                continue
            torch.mm(inputs[rows], weight[expert].t(), out=output[rows])
            if bias is not None:
                output[rows] += bias[expert]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        of_inputs = torch.empty_like(inputs) if needs_inputs else None
        of_weight = None
        if needs_weight:
            of_weight = torch.empty_like(weight) if ctx.gradient is None else ctx.gradient.part(ctx.experts)
        of_bias = weight.new_empty(weight.shape[:2]) if needs_bias else None
        fill_gradients(given, inputs, weight, ctx.counts, of_inputs, of_weight)
        if of_bias is not None:
            for expert, rows in slices(ctx.counts):
                of_bias[expert] = given[rows].sum(0)
        return of_inputs, of_weight, of_bias, None, None, None


def fill_gradients(
    given: torch.Tensor,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    counts: Sequence[int],
    of_inputs: torch.Tensor | None,
    of_weight: torch.Tensor | None,
) -> None:
    """Fill the gradients of the inputs and the weights of linear layers on slices of rows, those that are wanted."""
    for expert, rows in slices(counts):
        if of_inputs is not None:
            torch.mm(given[rows], weight[expert], out=of_inputs[rows])
        if of_weight is not None:
            torch.mm(given[rows].t(), inputs[rows], out=of_weight[expert])


def slices(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Each expert's rows, also if it has none: its gradient then is zero."""
    start = 0
    for expert, count in enumerate(counts):
        yield expert, slice(start, start + count)
        start += count
