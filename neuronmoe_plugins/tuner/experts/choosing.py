"""Which implementation runs the experts."""

from __future__ import annotations

import os

import torch
from transformers.utils import logging

from neuronmoe_plugins.tuner.experts.grouped import run_grouped, why_not_grouped
from neuronmoe_plugins.tuner.experts.layer_experts import LayerExperts
from neuronmoe_plugins.tuner.experts.loop import run_loop
from neuronmoe_plugins.tuner.experts.one_token import run_one_token
from neuronmoe_plugins.tuner.experts.sorted import run_sorted

AUTO, LOOP, SORTED, GROUPED_MM = IMPLEMENTATIONS = ("auto", "loop", "sorted", "grouped_mm")
VARIABLE = "NEURONMOE_EXPERTS_IMPLEMENTATION"

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
        implementation: `loop`, `sorted`, `grouped_mm`, or `auto`: `grouped_mm` on a GPU that can, otherwise `sorted`.
            Where `grouped_mm` is not possible, `sorted` stands in and the log says why.
        tokens: (tokens, hidden).
        weights: (tokens, topk).
        selected_experts: (tokens, topk) int64; an index beyond the experts is a choice that is not used.
        experts: The layer's experts.

    Returns:
        (tokens, hidden) in the dtype of `tokens`.
    """
    if implementation == LOOP:
        return run_loop(tokens, weights, selected_experts, experts)
    if implementation == GROUPED_MM or (implementation == AUTO and tokens.is_cuda):
        reason = why_not_grouped(tokens, experts)
        if reason is None:
            return run_grouped(tokens, weights, selected_experts, experts)
        if implementation == GROUPED_MM:
            _tell_once(f"experts_implementation: sorted instead of grouped_mm, because {reason}")
    if len(tokens) == 1 and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return run_one_token(tokens, weights, selected_experts, experts)
    return run_sorted(tokens, weights, selected_experts, experts)


@torch.compiler.disable
def _tell_once(message: str) -> None:
    logger.warning_once(message)
