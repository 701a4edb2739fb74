"""Rows sorted by expert, so that each expert has one slice; best on a CPU, and wherever its hooks must run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch

from neuronmoe_plugins.tuner.experts.layer_experts import Expert, ExpertStack, LayerExperts
from neuronmoe_plugins.tuner.experts.sliced import SlicedStack

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

    The arguments are those of :func:`~neuronmoe_plugins.tuner.experts.choosing.run_experts`.
    """
    flat = selected_experts.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=len(experts))[: len(experts)].tolist()
    order = order[: sum(counts)]
    parts = [part for part in _parts(counts, experts) if part.rows or part.is_needed]
    sizes = [part.rows for part in parts]
    token_index = order // selected_experts.shape[1]
    inputs = tokens.index_select(0, token_index).split(sizes)
    factors = weights.flatten().index_select(0, order).unsqueeze(-1).to(tokens.dtype).split(sizes)
    mixed = torch.zeros_like(tokens)
    for part, states, factor, index in zip(parts, inputs, factors, token_index.split(sizes), strict=True):
        mixed.index_add_(0, index, part.run(states).to(tokens.dtype) * factor)
    return mixed


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
