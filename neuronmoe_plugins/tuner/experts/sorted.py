"""Rows sorted by expert, so that each expert has one slice; best on a CPU, and wherever its hooks must run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch

from neuronmoe_plugins.tuner.experts.layer_experts import Expert, ExpertStack, LayerExperts
from neuronmoe_plugins.tuner.experts.projections import project_slices

# Experts with few rows run together: one call for all of them, and gradients are written where they belong. With many,
# each by itself leaves more of its activations in the processor's cache, which then outweighs that the gradients of its
# weights are copied into those of the stack. Both grow alike with the intermediate size, so that it depends on the rows
# per hidden unit (measured: equal at 0.6 to 0.7).
TOGETHER_ROWS_PER_HIDDEN = 0.5


class _Part(NamedTuple):
    """Consecutive sorted rows, and what runs on them."""

    rows: int
    run: Expert
    is_trained: bool = False


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
    # An expert that is trained takes part also without a row, to get a (zero) gradient.
    parts = [part for part in _parts(counts, experts) if part.rows or part.is_trained]
    if not parts:
        return tokens
    token_index = order // selected_experts.shape[1]
    rows = tokens.index_select(0, token_index).split([part.rows for part in parts])
    outputs = [part.run(states).to(tokens.dtype) for part, states in zip(parts, rows, strict=True)]
    mixed = torch.cat(outputs) * weights.flatten()[order].unsqueeze(-1).to(tokens.dtype)
    return torch.zeros_like(tokens).index_add_(0, token_index, mixed)


def _parts(counts: list[int], experts: LayerExperts) -> Iterator[_Part]:
    """The base, and each stack in one part or one for each of its experts."""
    yield _Part(counts[0], experts.run_base)
    first = 1
    for stack in experts.stacks:
        of_stack = counts[first : first + len(stack)]
        first += len(stack)
        if _have_few_rows(sum(of_stack), stack):
            linear = partial(project_slices, stack, of_stack)
            yield _Part(sum(of_stack), partial(experts.run_together, linear=linear), stack.is_trained)
        else:
            yield from map(_Part, of_stack, experts.of_stack(stack))


def _have_few_rows(rows: int, stack: ExpertStack) -> bool:
    hidden = next(iter(stack.weights.values())).shape[-1]
    return rows <= TOGETHER_ROWS_PER_HIDDEN * hidden * len(stack)
