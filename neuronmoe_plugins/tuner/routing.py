"""Routing of tokens to experts, and what the layers of one forward pass share with their model."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from neuronmoe_plugins.blocks import block_order
from neuronmoe_plugins.tuner.groups import Groups, groups_of_cache
from neuronmoe_plugins.tuner.plans import LayerPlan


@dataclass
class LayerRouting:
    """What one mixture layer decided in one forward pass; tokens are batch x sequence, flattened.

    Attributes:
        router_logits: (tokens, num_experts).
        selected_experts: (tokens, topk) int64, best first; num_experts, which is no expert, where a token of a
            restricted group may use fewer than topk.
        group_logits: (batch, num_groups) of the layer's classifier, None without one.
        router_trainable: Whether a router weight asks for a gradient.
        adapter_name: The adapter that was active.
        plan: The layer's plan in that adapter.
    """

    router_logits: torch.Tensor
    selected_experts: torch.Tensor
    group_logits: torch.Tensor | None
    router_trainable: bool
    adapter_name: str
    plan: LayerPlan


@dataclass
class ForwardPass:
    """What the mixture layers of a model share in one forward pass.

    Routing is recorded only while `recording`, during the model's own forward, so the recomputation of activation
    checkpointing leaves no trace in it.

    Attributes:
        given: The mixture's inputs, as the model's call had them.
        recording: Whether layers write into `layers`.
        layers: Layer index, or that of its attention (see `plans.py`) -> routing.
        attention_mask: The model's, (batch, past + sequence), or another form that the model takes.
        groups: The groups decided so far; those of a KV cache in use were decided when it was prefilled.
        returns_tuple: Whether the caller wants a tuple of the model's outputs.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    recording: bool = False
    layers: dict[int, LayerRouting] = field(default_factory=dict)
    attention_mask: Any = None
    groups: Groups = field(default_factory=Groups)
    returns_tuple: bool = False


class ForwardContext:
    """The forward passes of a model that run now, one per thread at most.

    Mask and groups of the last pass stay for the recomputation of activation checkpointing, which may run in another
    thread, that of autograd, until the next pass begins.
    """

    def __init__(self) -> None:
        self._running: dict[int, ForwardPass] = {}
        self._last = ForwardPass()
        self._prompts: dict[int, Groups] = {}

    @property
    def current(self) -> ForwardPass:
        """The pass that runs in this thread, or the last one."""
        return self._running.get(running_thread(), self._last)

    def start(self, forward: ForwardPass) -> None:
        """Begin a forward pass in this thread."""
        self._running[running_thread()] = self._last = forward

    def stop(self) -> dict[int, LayerRouting]:
        """End it and hand out layer index -> routing, in layer order."""
        forward = self._running.pop(running_thread())
        forward.recording = False
        layers, forward.layers = forward.layers, {}
        return {index: layers[index] for index in sorted(layers, key=block_order)}

    @contextmanager
    def generating(self, prompt_length: int | None) -> Iterator[None]:
        """Decide language groups once for all forward passes of this thread within the context.

        Args:
            prompt_length: The number of tokens to decide on, those of the first pass if it is None.
        """
        outer = self._prompts.get(running_thread())
        self._prompts[running_thread()] = Groups(prompt_length)
        try:
            yield
        finally:
            self._prompts.pop(running_thread())
            if outer is not None:
                self._prompts[running_thread()] = outer

    def groups(self, cache: Any) -> Groups:
        """The groups of a forward pass that is about to begin in this thread, with this KV cache or None."""
        prompt = self._prompts.get(running_thread())
        if cache is not None:
            return groups_of_cache(cache, None if prompt is None else prompt.prompt_length)
        return Groups() if prompt is None else prompt


def running_thread() -> int:
    """What tells the forward passes of a model that run at the same time from each other."""
    # A compiled forward, which cannot ask for the thread, is the only one of its model.
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def route(
    router_logits: torch.Tensor, topk: int, num_allowed: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose each token's experts.

    The softmax runs in float32 over all experts. With `topk` >= 2 the chosen weights are renormalised to sum to 1; with
    1 the output is scaled by the expert's probability, which keeps a gradient on the router. A token that may use
    expert 0 alone gets it with weight 1.

    Args:
        router_logits: (tokens, num_experts).
        topk: Experts per token, clamped to num_experts.
        num_allowed: (tokens,) int64, how many of the first experts a token may use; all when not given.

    Returns:
        Weights (tokens, topk) in float32 and expert indices (tokens, topk) int64, best first. Where fewer experts are
        allowed than chosen, the rest has weight 0 and the index num_experts.
    """
    num_experts = router_logits.shape[-1]
    probabilities = torch.softmax(router_logits, dim=-1, dtype=torch.float32)
    if num_allowed is not None:
        forbidden = torch.arange(num_experts, device=router_logits.device) >= num_allowed.unsqueeze(-1)
        # Below every probability, so that top-k takes the allowed ones first.
        probabilities = probabilities.masked_fill(forbidden, -1.0)
    weights, selected_experts = probabilities.topk(min(topk, num_experts), dim=-1)
    if num_allowed is not None:
        unused = weights < 0
        weights = weights.masked_fill(unused, 0.0)
        selected_experts = selected_experts.masked_fill(unused, num_experts)
    if topk > 1:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    elif num_allowed is not None:
        weights = torch.where(num_allowed.unsqueeze(-1) == 1, torch.ones_like(weights), weights)
    return weights, selected_experts
