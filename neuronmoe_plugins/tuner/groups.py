"""Language groups: a layer's classifier decides per sequence which experts its tokens may use (LayerMoE).

They are decided once, on the prompt, and go with its sequences wherever a KV cache takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch

from neuronmoe_plugins.tuner.inputs import real_tokens
from neuronmoe_plugins.tuner.plans import LayerPlan

# The attribute of a KV cache that carries the groups of the sequences in it, also through copies of the cache.
CACHE_ATTRIBUTE = "moe_groups"


class Groups(dict[tuple[int, str], torch.Tensor]):
    """Layer and adapter -> (batch,) int64, the group of each sequence.

    Args:
        prompt_length: How many tokens of each sequence they are decided on; not given, all that the first forward has.
    """

    def __init__(self, prompt_length: int | None = None) -> None:
        super().__init__()
        self.prompt_length = prompt_length

    def decide(
        self,
        key: tuple[int, str],
        hidden_states: torch.Tensor,
        attention_mask: Any,
        classify: Callable[[torch.Tensor], torch.Tensor],
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The group of each sequence: the classifier's first choice, or what was decided on the prompt.

        Args:
            key: Layer and adapter.
            hidden_states: (batch, sequence, hidden).
            attention_mask: The model's.
            classify: (batch, hidden) float32 to (batch, num_groups), the classifier.

        Returns:
            The classifier's logits (batch, num_groups), None where nothing needs them, and the groups (batch,) int64.
        """
        if key in self and not torch.is_grad_enabled():
            return None, self.of_batch(key, len(hidden_states))
        self.prompt_length = self.prompt_length or hidden_states.shape[1]
        if key not in self and hidden_states.shape[1] < self.prompt_length:
            raise ValueError(
                "group_nums decides language groups on the whole prompt, and the model was shown its beginning: leave "
                "prefill_chunk_size out"
            )
        logits = classify(sum_of_real_tokens(hidden_states, attention_mask, self.prompt_length))
        if key not in self:
            self[key] = logits.detach().argmax(dim=-1)
        return logits, self.of_batch(key, len(hidden_states))

    def of_batch(self, key: tuple[int, str], batch_size: int) -> torch.Tensor:
        """(batch,) int64: those of a batch, whose sequences may be repetitions of those in the cache.

        Raises:
            ValueError: if the batch cannot be that.
        """
        groups = self[key]
        if batch_size % len(groups):
            raise ValueError(
                f"language groups were decided for {len(groups)} sequences, but {batch_size} go on: select sequences "
                "by the KV cache's own methods"
            )
        return groups.repeat_interleave(batch_size // len(groups))


def sum_of_real_tokens(hidden_states: torch.Tensor, attention_mask: Any, length: int) -> torch.Tensor:
    """Sum of each sequence's first hidden states, in float32, padding left out.

    Args:
        hidden_states: (batch, sequence, hidden).
        attention_mask: (batch, past + sequence), 0 for padding; None for none. At the start of a static cache also
            (batch, 1, sequence, cache), or one of these for each kind of attention.
        length: How many of them.

    Returns:
        (batch, hidden) float32.

    Raises:
        ValueError: for masks of another form, which do not say what is padding.
    """
    states, sequence = hidden_states.float(), hidden_states.shape[1]
    if isinstance(attention_mask, Mapping):
        attention_mask = next(iter(attention_mask.values()))
    if attention_mask is None:
        return states[:, :length].sum(dim=1)
    shape = tuple(attention_mask.shape) if hasattr(attention_mask, "shape") else type(attention_mask).__name__
    if isinstance(attention_mask, torch.Tensor) and len(shape) == 4 and shape[-1] > shape[-2] == sequence:
        attention_mask = real_tokens(attention_mask[..., :sequence]).view(-1, sequence)  # type: ignore[union-attr]
    elif not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        raise ValueError(
            f"group_nums needs an attention_mask of (batch, sequence) to tell tokens from padding; got {shape}"
        )
    mask = attention_mask[:, -sequence:].to(states)
    return (states * mask.unsqueeze(-1))[:, :length].sum(dim=1)


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


def groups_of_cache(cache: Any, prompt_length: int | None = None) -> Groups:
    """The groups decided when `cache` was prefilled; new ones, kept with the cache, while it is empty.

    Args:
        cache: The model's.
        prompt_length: How many tokens the prompt has, if that is known.

    Raises:
        ValueError: if the cache was prefilled without them.
    """
    if int(cache.get_seq_length()) == 0:
        keep_in_cache(cache, Groups(prompt_length))
    elif not hasattr(cache, CACHE_ATTRIBUTE):
        raise ValueError(
            "the KV cache was filled without this adapter, or was cut within its prompt, so the language group of its "
            "sequences is unknown: run the prompt again with the adapter active"
        )
    groups: Groups = getattr(cache, CACHE_ATTRIBUTE)
    return groups


def keep_in_cache(cache: Any, groups: Groups) -> None:
    """Let a cache carry groups, and rearrange them as it does its sequences."""
    if vars(cache).get(CACHE_ATTRIBUTE) is groups:
        return
    setattr(cache, CACHE_ATTRIBUTE, groups)
    for method in (reorder_cache, batch_select_indices, batch_repeat_interleave, crop):
        if hasattr(type(cache), method.__name__):
            # On this cache alone; a bound method is copied with it.
            vars(cache)[method.__name__] = MethodType(method, cache)


def reorder_cache(cache: Any, beam_idx: torch.Tensor) -> None:
    """Stand in for a cache's method: the sequences become those of these indices (batch,)."""
    type(cache).reorder_cache(cache, beam_idx)
    _select(cache, beam_idx)


def batch_select_indices(cache: Any, indices: torch.Tensor) -> None:
    """Stand in for a cache's method: the sequences become those of these indices, or of this mask (batch,)."""
    type(cache).batch_select_indices(cache, indices)
    _select(cache, indices)


def batch_repeat_interleave(cache: Any, repeats: int) -> None:
    """Stand in for a cache's method: each sequence becomes several."""
    type(cache).batch_repeat_interleave(cache, repeats)
    groups = vars(cache)[CACHE_ATTRIBUTE]
    for key, decided in groups.items():
        groups[key] = decided.repeat_interleave(repeats)


def crop(cache: Any, *length: Any, **named: Any) -> None:
    """Stand in for a cache's method: what is cut within the prompt has another prompt, whose groups are unknown."""
    type(cache).crop(cache, *length, **named)
    if int(cache.get_seq_length()) < (vars(cache)[CACHE_ATTRIBUTE].prompt_length or 0):
        del vars(cache)[CACHE_ATTRIBUTE]


def _select(cache: Any, indices: torch.Tensor) -> None:
    groups = vars(cache)[CACHE_ATTRIBUTE]
    for key, decided in groups.items():
        groups[key] = decided[torch.as_tensor(indices, device=decided.device)]
