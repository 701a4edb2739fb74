"""Routing of tokens to experts, language groups, and what the layers of one forward pass share with their model.

Language groups: a layer's classifier decides per sequence which experts its tokens may use (LayerMoE).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from neuronmoe_plugins.tuner.plans import LayerPlan

# The attribute of a KV cache that carries the groups of the sequences in it, also through copies of the cache.
CACHE_ATTRIBUTE = "moe_groups"

# Layer and adapter -> (batch,) group of each sequence.
Groups = dict[tuple[int, str], torch.Tensor]


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
        layers: Layer index -> routing.
        attention_mask: The model's, (batch, past + sequence), or another form that the model takes.
        groups: The groups decided so far; those of a KV cache in use were decided when it was prefilled.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    recording: bool = False
    layers: dict[int, LayerRouting] = field(default_factory=dict)
    attention_mask: Any = None
    groups: Groups = field(default_factory=dict)


class ForwardContext:
    """The forward passes of a model that run now, one per thread at most.

    Mask and groups of the last pass stay for the recomputation of activation checkpointing, which may run in another
    thread, that of autograd, until the next pass begins.
    """

    def __init__(self) -> None:
        self._running: dict[int, ForwardPass] = {}
        self._last = ForwardPass()

    @property
    def current(self) -> ForwardPass:
        """The pass that runs in this thread, or the last one."""
        return self._running.get(_thread(), self._last)

    def start(
        self, attention_mask: Any, groups: Groups, recording: bool, given: Mapping[str, Any] | None = None
    ) -> None:
        """Begin a forward pass in this thread."""
        forward = ForwardPass(given or {}, recording, {}, attention_mask, groups)
        self._running[_thread()] = self._last = forward

    def stop(self) -> dict[int, LayerRouting]:
        """End it and hand out layer index -> routing, in layer order."""
        forward = self._running.pop(_thread())
        forward.recording = False
        layers, forward.layers = forward.layers, {}
        return dict(sorted(layers.items()))


def _thread() -> int:
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


def sum_of_real_tokens(hidden_states: torch.Tensor, attention_mask: Any) -> torch.Tensor:
    """Sum of each sequence's hidden states, in float32, padding left out.

    Args:
        hidden_states: (batch, sequence, hidden).
        attention_mask: (batch, past + sequence), 0 for padding; None for none.

    Returns:
        (batch, hidden) float32.

    Raises:
        ValueError: for masks of another form, which do not say what is padding.
    """
    states = hidden_states.float()
    if attention_mask is None:
        return states.sum(dim=1)
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        raise ValueError(
            "group_nums needs an attention_mask of (batch, sequence) to tell tokens from padding; got "
            + (str(tuple(attention_mask.shape)) if hasattr(attention_mask, "shape") else type(attention_mask).__name__)
        )
    mask = attention_mask[:, -hidden_states.shape[1] :].to(states)
    return (states * mask.unsqueeze(-1)).sum(dim=1)


def decide_groups(
    group_logits: torch.Tensor, forward: ForwardPass, layer_index: int, adapter_name: str
) -> torch.Tensor:
    """The group of each sequence: the classifier's first choice, or what was decided when the cache was prefilled.

    Args:
        group_logits: (batch, num_groups).
        forward: The forward pass.
        layer_index: Index of the decoder layer.
        adapter_name: The active adapter.

    Returns:
        (batch,) int64.
    """
    key = (layer_index, adapter_name)
    if key not in forward.groups:
        forward.groups[key] = group_logits.detach().argmax(dim=-1)
    groups = forward.groups[key]
    # A cache can be repeated after its prefill, several continuations for each prompt.
    return groups.repeat_interleave(group_logits.shape[0] // groups.shape[0])


def allowed_experts(groups: torch.Tensor, plan: LayerPlan) -> torch.Tensor:
    """How many of the first experts each sequence may use: group 0 the base, 1 the old ones, the others all.

    Args:
        groups: (batch,) int64.
        plan: The layer's plan.

    Returns:
        (batch,) int64.
    """
    counts = [1, plan.num_first_experts] + [plan.num_experts] * (plan.num_groups - 2)
    return torch.tensor(counts, device=groups.device)[groups]


def groups_of_cache(cache: Any) -> Groups:
    """The groups decided when `cache` was prefilled; a new dictionary, kept with the cache, while it is empty.

    Raises:
        ValueError: if the cache was prefilled without them.
    """
    if cache is None:
        return {}
    if int(cache.get_seq_length()) == 0:
        setattr(cache, CACHE_ATTRIBUTE, {})
    elif not hasattr(cache, CACHE_ATTRIBUTE):
        raise ValueError(
            "the KV cache was filled without this adapter, so the language group of its sequences is unknown: run the "
            "prompt again with the adapter active"
        )
    groups: Groups = getattr(cache, CACHE_ATTRIBUTE)
    return groups
