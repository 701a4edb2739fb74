"""The model inputs that the mixture's losses read, beside those of the base model, and how many items each has.

A loss that is a mean over some items is accumulated exactly over micro-batches and processes if each adds its share of
all items. Who splits a batch therefore passes the total counts on (see `count_items`), as transformers' Trainer does
with `num_items_in_batch` for the labelled tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from neuronmoe_plugins.tuner.losses import IGNORED
from neuronmoe_plugins.tuner.plans import LayerPlan

TOTALS = {
    "old_language_mask": "num_old_items_in_batch",
    "group_tags": "num_tagged_sequences_in_batch",
    "target_experts": "num_target_items_in_batch",
}
# The same for `labels`. Trainers' own `num_items_in_batch` counts all labels or, in later versions, all but the first.
LABELS_TOTAL = "num_labels_in_batch"
# The labels, from a trainer that gives the model no `labels`, and adds the mixture's losses to a loss of its own.
MIXTURE_LABELS = "mixture_labels"


@dataclass
class MixtureInputs:
    """What a batch says to the mixture's losses; tokens are batch x sequence, flattened.

    Attributes:
        token_mask: (tokens,) bool, real tokens; None for all.
        old_tokens: (tokens,) bool, real tokens of the languages to keep.
        group_tags: (batch,) int64, group of each sequence, -100 for none.
        token_groups: (tokens,) int64, group of each real token, -100 for none; only if tags were given per token.
        target_experts: (tokens, targets) int64, experts that a real token is drawn to, -100 for none.
        totals: Number of items in all micro-batches and processes, by the names in `TOTALS`.
    """

    token_mask: torch.Tensor | None = None
    old_tokens: torch.Tensor | None = None
    group_tags: torch.Tensor | None = None
    token_groups: torch.Tensor | None = None
    target_experts: torch.Tensor | None = None
    totals: dict[str, torch.Tensor] | None = None

    @classmethod
    def take(cls, batch: dict[str, Any]) -> dict[str, Any]:
        """Remove the mixture's inputs from a model call's keyword arguments, and return them."""
        names = (*TOTALS, *TOTALS.values(), LABELS_TOTAL, MIXTURE_LABELS)
        return {name: batch.pop(name) for name in names if name in batch}

    @classmethod
    def read(cls, given: Mapping[str, Any], attention_mask: Any) -> MixtureInputs:
        """Bring the inputs into shape.

        Args:
            given: Those of `old_language_mask` (batch, sequence) bool or 0/1, `group_tags` (batch,) or
                (batch, sequence) int64, and `target_experts` (batch, sequence, targets) int64 that the batch has, and
                their totals.
            attention_mask: The model's; (batch, sequence), or another form, which leaves no token out.
        """
        inputs = cls(
            real_tokens(attention_mask), totals={name: given[name] for name in TOTALS.values() if name in given}
        )
        real = inputs.token_mask
        if given.get("old_language_mask") is not None:
            old = given["old_language_mask"].flatten().bool()
            inputs.old_tokens = old if real is None else old & real
        if given.get("group_tags") is not None:
            tags = given["group_tags"]
            if tags.dim() > 1:
                tags = tags.reshape(tags.shape[0], -1)
                masked = tags if real is None else tags.masked_fill(~real.view_as(tags), IGNORED)
                inputs.token_groups, tags = masked.flatten(), majority(masked)
            inputs.group_tags = tags
        if given.get("target_experts") is not None:
            targets = given["target_experts"].flatten(0, 1)
            inputs.target_experts = targets if real is None else targets.masked_fill(~real.unsqueeze(-1), IGNORED)
        return inputs

    def counts(self) -> dict[str, torch.Tensor]:
        """Items of each loss in this batch, by the names in `TOTALS`."""
        counts = {}
        if self.old_tokens is not None:
            counts["num_old_items_in_batch"] = self.old_tokens.sum()
        if self.group_tags is not None:
            counts["num_tagged_sequences_in_batch"] = (self.group_tags != IGNORED).sum()
        if self.target_experts is not None or self.token_groups is not None:
            counts["num_target_items_in_batch"] = self.targeted_tokens().sum()
        return counts

    def targeted_tokens(self) -> torch.Tensor:
        """(tokens,) bool: real tokens with a target expert, or else a group."""
        if self.target_experts is not None:
            return (self.target_experts != IGNORED).any(dim=-1)
        if self.token_groups is None:
            raise ValueError(
                "sequential_add_loss_coef needs target_experts, or group_tags of (batch, sequence); got one tag for "
                "each sequence"
            )
        return self.token_groups != IGNORED

    def targets_in_layer(self, plan: LayerPlan) -> torch.Tensor:
        """(tokens, num_experts) of 0 and 1: the target experts of each token in a layer.

        A token of group 0 has the base MLP, of group 1 the experts that an extension found there, of the others those
        that it added; a layer may have none of these.
        """
        if self.target_experts is not None:
            return _one_per_target(self.target_experts, plan)
        old = plan.num_first_experts
        experts = torch.arange(plan.num_experts)
        by_group = torch.stack([experts == 0, (experts > 0) & (experts < old), experts >= old])
        groups = self.token_groups
        assert groups is not None, "checked by targeted_tokens"
        return by_group.to(groups.device)[groups.clamp(0, 2)] & (groups != IGNORED).unsqueeze(-1)


def real_tokens(attention_mask: Any) -> torch.Tensor | None:
    """Which tokens are no padding, bool (tokens,); None (all of them) for a mask of unknown form.

    Args:
        attention_mask: (batch, sequence); or (batch, 1, sequence, sequence), as for sequences packed together, true or
            0.0 where a token sees another. Padding there does not even see itself.
    """
    if not isinstance(attention_mask, torch.Tensor):
        return None
    if attention_mask.dim() == 4 and attention_mask.shape[-1] == attention_mask.shape[-2]:
        itself = attention_mask[:, 0].diagonal(dim1=-2, dim2=-1)
        return (itself if itself.dtype == torch.bool else itself == 0).flatten()
    return attention_mask.flatten().bool() if attention_mask.dim() == 2 else None


def majority(tags: torch.Tensor) -> torch.Tensor:
    """(batch, sequence) tags -> (batch,): that of most tokens of each sequence, -100 where none has one."""
    groups = torch.arange(int(tags.max().clamp(min=0)) + 1, device=tags.device)
    counts = (tags.unsqueeze(-1) == groups).sum(dim=1)
    return counts.argmax(dim=-1).masked_fill(counts.sum(dim=-1) == 0, IGNORED)


def count_items(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Items of each of the mixture's losses in a batch, by the names under which a model call takes their totals.

    Args:
        batch: Model inputs.

    Returns:
        Name -> scalar int64.
    """
    counts = MixtureInputs.read(batch, batch.get("attention_mask")).counts()
    labels = {} if batch.get("labels") is None else {LABELS_TOTAL: (batch["labels"] != IGNORED).sum()}
    return counts | labels


def _one_per_target(target_experts: torch.Tensor, plan: LayerPlan) -> torch.Tensor:
    highest = int(target_experts.max())
    if highest >= plan.num_experts:
        raise ValueError(f"target_experts names expert {highest}, but a layer has {plan.num_experts}")
    valid = target_experts != IGNORED
    counts = torch.zeros(len(target_experts), plan.num_experts, device=target_experts.device)
    return counts.scatter_add(1, target_experts.clamp(min=0), valid.to(counts))
