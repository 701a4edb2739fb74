"""Ways to run the experts of a mixture layer on their tokens, all of which compute the same, and which one does.

Shapes: tokens are (tokens, hidden), in any order of batch and sequence; weights and selected_experts (tokens, topk).
"""

from __future__ import annotations

import os
from functools import partial

import torch
from torch._subclasses import FakeTensor
from transformers.utils import logging

from neuronmoe_plugins.tuner.experts.grouped import run_grouped, why_not_grouped
from neuronmoe_plugins.tuner.experts.low_rank import AddedDeltas, AllDeltas, run_low_rank
from neuronmoe_plugins.tuner.experts.sorted import run_sorted
from neuronmoe_plugins.tuner.experts.stacks import Expert, Experts, LayerExperts

AUTO, LOOP, SORTED, GROUPED_MM = IMPLEMENTATIONS = ("auto", "loop", "sorted", "grouped_mm")
VARIABLE = "NEURONMOE_EXPERTS_IMPLEMENTATION"
# From so many tokens on `auto` sorts full copies on a GPU, too: the fewest for which that was measured to be faster.
MANY_TOKENS = 8192

logger = logging.get_logger(__name__)


def check_implementation(source: str, name: object) -> None:
    """Raises ValueError: if there is no implementation of this name, which `source` gave."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"{source} must be one of {', '.join(IMPLEMENTATIONS)}; got {name!r}")


def wanted_implementation(configured: str) -> str:
    """The configured implementation; where that is `auto`, the environment variable's.

    Raises:
        ValueError: if the variable names no implementation.
    """
    if configured != AUTO:
        return configured
    wanted = os.environ.get(VARIABLE) or AUTO
    check_implementation(VARIABLE, wanted)
    return wanted


def run_experts(
    implementation: str,
    tokens: torch.Tensor,
    weights: torch.Tensor,
    selected_experts: torch.Tensor,
    experts: LayerExperts,
) -> torch.Tensor:
    """Run each expert on the tokens that chose it, and mix the outputs.

    Args:
        implementation: `loop`, `sorted`, `grouped_mm`, or `auto`: `grouped_mm` on a GPU that can, unless full copies
            get at least 8,192 tokens outside of compiled code and CUDA graphs; otherwise `sorted`. Where `grouped_mm`
            is not possible, `sorted` stands in and the log says why; for `sorted`, which is not compiled, the loop with
            `fullgraph=True`. Tensors without values, on the meta device or in an export, are run in the ways that they
            allow.
        tokens: (tokens, hidden).
        weights: (tokens, topk).
        selected_experts: (tokens, topk) int64; an index beyond the experts is a choice that is not used.
        experts: The layer's experts.

    Returns:
        (tokens, hidden) in the dtype of `tokens`.
    """
    possible = _possible(implementation, tokens, experts)
    if possible == LOOP:
        # Tensors without values: torch.export traces how rows are chosen, and who asks for shapes alone cannot.
        run = run_all if _has_no_values(tokens) and not torch.compiler.is_compiling() else run_loop
        return run(tokens, weights, selected_experts, experts)
    if experts.is_low_rank:
        return run_low_rank(tokens, weights, selected_experts, experts, grouped=possible == GROUPED_MM)
    if possible == GROUPED_MM:
        return run_grouped(tokens, weights, selected_experts, experts)
    if len(tokens) == 1 and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return run_one_token(tokens, weights, selected_experts, experts)
    return run_sorted(tokens, weights, selected_experts, experts)


def added_deltas(
    implementation: str, tokens: torch.Tensor, weights: torch.Tensor, selected_experts: torch.Tensor, experts: Experts
) -> AddedDeltas | AllDeltas:
    """What experts of low rank add to the outputs of linear layers that all tokens pass in one order.

    The arguments are those of :func:`run_experts`; for the loop, which finds each expert's tokens for each layer anew,
    all experts stand in on all tokens.
    """
    possible = _possible(implementation, tokens, experts)
    if possible == LOOP:
        return AllDeltas(weights, selected_experts, experts)
    return AddedDeltas(weights, selected_experts, experts, grouped=possible == GROUPED_MM)


def _possible(implementation: str, tokens: torch.Tensor, experts: Experts) -> str:
    """`loop`, `sorted` or `grouped_mm`: the implementation, or what stands in for it; see :func:`run_experts`."""
    if implementation == LOOP or _has_no_values(tokens):
        return LOOP
    if implementation == GROUPED_MM or (implementation == AUTO and _is_better_grouped(tokens, experts)):
        reason = why_not_grouped(tokens, experts)
        if reason is None:
            return GROUPED_MM
        if implementation == GROUPED_MM:
            _tell_once(f"experts_implementation: sorted instead of grouped_mm, because {reason}")
    return LOOP if torch.compiler.is_dynamo_compiling() and _must_compile_whole() else SORTED


def _is_better_grouped(tokens: torch.Tensor, experts: Experts) -> bool:
    if not tokens.is_cuda:
        return False
    if experts.is_low_rank or torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return True
    return len(tokens) < MANY_TOKENS


def _has_no_values(tokens: torch.Tensor) -> bool:
    return tokens.is_meta or isinstance(tokens, FakeTensor)


@torch.compiler.assume_constant_result
def _must_compile_whole() -> bool:
    """Whether the compiler that runs now may leave nothing to Python (`fullgraph=True`)."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    return bool(InstructionTranslator.current_tx().one_graph)


@torch.compiler.disable
def _tell_once(message: str) -> None:
    logger.warning_once(message)


def run_loop(
    tokens: torch.Tensor, weights: torch.Tensor, selected_experts: torch.Tensor, experts: LayerExperts
) -> torch.Tensor:
    """Find each expert's tokens, run it on them and add its weighted output to theirs.

    The arguments are those of :func:`~neuronmoe_plugins.tuner.experts.run_experts`.
    """
    mixed = torch.zeros_like(tokens)
    for index, run in enumerate(experts.runs()):
        token_index, choice = torch.where(selected_experts == index)
        # Also without a token, so that every expert is in the graph and gets a (zero) gradient.
        output = run(tokens[token_index]).to(tokens.dtype)
        mixed = mixed.index_add(0, token_index, output * weights[token_index, choice, None].to(tokens.dtype))
    return mixed


def run_all(
    tokens: torch.Tensor, weights: torch.Tensor, selected_experts: torch.Tensor, experts: LayerExperts
) -> torch.Tensor:
    """Run all experts on all tokens, those that a token did not choose with weight 0; all shapes are known before.

    The arguments are those of :func:`~neuronmoe_plugins.tuner.experts.run_experts`.
    """
    mixed = torch.zeros_like(tokens)
    for index, run in enumerate(experts.runs()):
        weight = (weights * (selected_experts == index)).sum(dim=-1, keepdim=True)
        mixed = mixed + run(tokens).to(tokens.dtype) * weight.to(tokens.dtype)
    return mixed


def run_one_token(
    tokens: torch.Tensor, weights: torch.Tensor, selected_experts: torch.Tensor, experts: LayerExperts
) -> torch.Tensor:
    """Run the token's experts one after the other; nothing needs sorting.

    The arguments are those of :func:`~neuronmoe_plugins.tuner.experts.run_experts`, with one token.
    """
    mixed: torch.Tensor | None = None
    for index, weight in zip(selected_experts[0].tolist(), weights[0].tolist(), strict=True):
        if index == len(experts):  # a choice that is not used; the first always is
            continue
        output = _expert(experts, index)(tokens).to(tokens.dtype)
        mixed = output * weight if mixed is None else mixed.add_(output, alpha=weight)
    assert mixed is not None
    return mixed


def _expert(experts: LayerExperts, index: int) -> Expert:
    if not index:
        return experts.run_base
    index -= 1
    for stack in experts.stacks:
        if index < len(stack):
            weights = {name: weight[index] for name, weight in stack.weights.items()}
            return partial(experts.run_together, linear=experts.of_weights(weights, stack.scaling))
        index -= len(stack)
    raise IndexError(f"there is no expert {index} beyond those of the stacks")
