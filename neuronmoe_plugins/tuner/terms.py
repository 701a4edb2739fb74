"""The mixture's losses of one batch, each with the items that it is a mean of; processes may share the batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import distributed

from neuronmoe_plugins.tuner.config import MoeConfig
from neuronmoe_plugins.tuner.inputs import MixtureInputs
from neuronmoe_plugins.tuner.losses import (
    IGNORED,
    classify_loss,
    count_choices,
    language_prior_loss,
    load_balancing_loss,
    sequence_load_balancing_loss,
    sequential_add_loss,
)
from neuronmoe_plugins.tuner.routing import LayerRouting

Layers = Mapping[int, LayerRouting]


@dataclass(frozen=True)
class Term:
    """One loss of a batch.

    Attributes:
        name: `aux_loss`, `lpr_loss`, `classify_loss` or `sequential_add_loss`.
        coefficient: Its coefficient.
        value: Scalar, the mean over the layers that have it.
        items: Scalar, the number of items that it is a mean of.
        share: Scalar, these items' part of those in all micro-batches and processes.
    """

    name: str
    coefficient: float
    value: torch.Tensor
    items: torch.Tensor
    share: torch.Tensor


@dataclass(frozen=True)
class _Batch:
    """The labels of a batch.

    Attributes:
        labelled: (batch, sequence) bool.
        total_items: Scalar, labels in all micro-batches and processes.
        over_processes: Whether every process is in this forward with a part of the same batch.
    """

    labelled: torch.Tensor
    total_items: torch.Tensor
    over_processes: bool

    @property
    def items(self) -> torch.Tensor:
        return self.labelled.sum()

    @property
    def share(self) -> torch.Tensor:
        return self.items / self.total_items


@dataclass(frozen=True)
class SharedBatch:
    """What all processes' parts of a batch count together.

    Attributes:
        choice_shares: Layer index -> (E,) float32, f_e of :func:`~neuronmoe_plugins.tuner.losses.load_balancing_loss`.
        tokens: Scalar, real tokens of this process.
        all_tokens: Scalar, those of all processes; at least 1.
        all_items: Scalar, labels of all processes.
    """

    choice_shares: dict[int, torch.Tensor]
    tokens: torch.Tensor
    all_tokens: torch.Tensor
    all_items: torch.Tensor

    @classmethod
    def count(
        cls, layers: Mapping[int, LayerRouting], token_mask: torch.Tensor | None, items: torch.Tensor
    ) -> SharedBatch:
        """Add the counts of all processes up, in one reduction; every process has to call it.

        With f_e over all of them the loss is linear in what each process computes, so that the parts add up to the loss
        of the whole batch (global-batch load balancing, Qiu et al. 2025).

        Args:
            layers: Layer index -> routing of this process's part.
            token_mask: (tokens,) bool, its real tokens; all when not given.
            items: Scalar, its labels.
        """
        choices = [count_choices(r.selected_experts, r.router_logits.shape[-1], token_mask) for r in layers.values()]
        num_tokens = len(next(iter(layers.values())).selected_experts)
        tokens = items.new_tensor(num_tokens) if token_mask is None else token_mask.sum().to(items)
        counts = torch.cat([*(count.to(items.device) for count in choices), tokens.view(1), items.view(1)]).double()
        distributed.all_reduce(counts)
        *all_choices, all_tokens, all_items = counts.split([*map(len, choices), 1, 1])
        all_tokens = all_tokens.clamp(min=1)
        shares = [(choice / all_tokens).float() for choice in all_choices]
        return cls(dict(zip(layers, shares, strict=True)), tokens, all_tokens.squeeze(), all_items.squeeze())


def mixture_terms(
    config: MoeConfig,
    layers: Layers,
    inputs: MixtureInputs,
    labels: torch.Tensor,
    total_items: torch.Tensor,
    over_processes: bool = False,
) -> Iterator[Term]:
    """The losses whose coefficient is set.

    Args:
        config: The active adapter's configuration.
        layers: Layer index -> routing of this batch.
        inputs: What the batch says to the losses.
        labels: (batch, sequence) int64, -100 where there is none.
        total_items: Scalar, labels in all micro-batches and processes.
        over_processes: Whether every process is in this call with a part of the same batch.

    Raises:
        ValueError: if a loss's input has an unfit form.
    """
    batch = _Batch(labels != IGNORED, total_items, over_processes)
    if config.aux_loss_coef:
        balance = _sequence_balance if config.aux_loss_per_sequence else _balance
        yield balance(config, layers, inputs, batch)
    counts, totals = inputs.counts(), inputs.totals or {}
    for coefficient, total_name, loss in (
        ("lpr_loss_coef", "num_old_items_in_batch", partial(_lpr, config.lpr_double_softmax)),
        ("classify_loss_coef", "num_tagged_sequences_in_batch", _classify),
        ("sequential_add_loss_coef", "num_target_items_in_batch", _sequential_add),
    ):
        value = getattr(config, coefficient)
        if not value:
            continue
        mean, count = _mean(map(partial(loss, inputs), layers.values())), counts[total_name]
        # Without a total, as if the items were spread like the labels.
        part = count / totals[total_name].clamp(min=1) if total_name in totals else batch.share
        yield Term(coefficient.removesuffix("_coef"), value, mean, count, part)


def _sequence_balance(config: MoeConfig, layers: Layers, inputs: MixtureInputs, batch: _Batch) -> Term:
    mask, weights = inputs.token_mask, batch.labelled.sum(dim=1)
    losses = (sequence_load_balancing_loss(r.router_logits, r.selected_experts, mask, weights) for r in layers.values())
    return Term("aux_loss", config.aux_loss_coef or 0.0, _mean(losses), batch.items, batch.share)


def _balance(config: MoeConfig, layers: Layers, inputs: MixtureInputs, batch: _Batch) -> Term:
    mask, items, share = inputs.token_mask, batch.items, batch.share
    choice_shares: dict[int, torch.Tensor] = {}
    if batch.over_processes:
        shared = SharedBatch.count(layers, mask, items)
        choice_shares, items = shared.choice_shares, shared.tokens
        share = shared.tokens / shared.all_tokens * shared.all_items / batch.total_items
    losses = (
        load_balancing_loss(r.router_logits, r.selected_experts, mask, choice_shares.get(layer))
        for layer, r in layers.items()
    )
    return Term("aux_loss", config.aux_loss_coef or 0.0, _mean(losses), items, share)


def _lpr(double_softmax: bool, inputs: MixtureInputs, routing: LayerRouting) -> torch.Tensor | None:
    assert inputs.old_tokens is not None, "checked before"
    return language_prior_loss(routing.router_logits, inputs.old_tokens, double_softmax)


def _classify(inputs: MixtureInputs, routing: LayerRouting) -> torch.Tensor | None:
    assert inputs.group_tags is not None, "checked before"
    if routing.group_logits is None:
        return None
    highest = int(inputs.group_tags.max())
    if highest >= routing.plan.num_groups:
        raise ValueError(f"group_tags names group {highest}, but group_nums gives a layer {routing.plan.num_groups}")
    return classify_loss(routing.group_logits, inputs.group_tags)


def _sequential_add(inputs: MixtureInputs, routing: LayerRouting) -> torch.Tensor | None:
    mask = inputs.targeted_tokens()
    return sequential_add_loss(routing.router_logits, inputs.targets_in_layer(routing.plan), mask)


def _mean(loss_of_layers: Iterable[torch.Tensor | None]) -> torch.Tensor:
    """Mean over the mixture layers that have the loss; they may lie on several devices."""
    losses = [loss for loss in loss_of_layers if loss is not None]
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()
