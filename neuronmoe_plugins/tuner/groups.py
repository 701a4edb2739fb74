"""Language groups: a layer's classifier decides per sequence which experts its tokens may use (LayerMoE)."""

from __future__ import annotations

from typing import Any

import torch

from neuronmoe_plugins.tuner.plan import LayerPlan
from neuronmoe_plugins.tuner.routing import ForwardContext, Groups

# The attribute of a KV cache that carries the groups of the sequences in it, also through copies of the cache.
CACHE_ATTRIBUTE = "moe_groups"


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
    group_logits: torch.Tensor, context: ForwardContext, layer_index: int, adapter_name: str
) -> torch.Tensor:
    """The group of each sequence: the classifier's first choice, or what was decided when the cache was prefilled.

    Args:
        group_logits: (batch, num_groups).
        context: The forward pass.
        layer_index: Index of the decoder layer.
        adapter_name: The active adapter.

    Returns:
        (batch,) int64.
    """
    key = (layer_index, adapter_name)
    if key not in context.groups:
        context.groups[key] = group_logits.detach().argmax(dim=-1)
    groups = context.groups[key]
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
