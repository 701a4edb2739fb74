"""Which experts the tokens chose: counted as a loop over tokens would, and what is said about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from peft import PeftModel, get_peft_model

from neuronmoe_plugins.tuner import MoeLayer
from neuronmoe_plugins.tuner.metrics import KINDS, RoutingCounter, RoutingCounts, read_counts, shares_for_logs
from neuronmoe_plugins.tuner.plans import LayerPlan
from neuronmoe_plugins.tuner.routing import LayerRouting
from tuner.tiny import moe_config, randomised, tiny_model

Choices = dict[tuple[int, str, int, int], int]


def mixture(num_experts: list[int], **options: object) -> PeftModel:
    torch.manual_seed(7)
    return randomised(get_peft_model(tiny_model(), moe_config(num_experts=num_experts, **options))).train()


@contextmanager
def recorded_choices(model: PeftModel) -> Iterator[dict[int, list[list[int]]]]:
    """Layer -> the experts of each token, best first, worked out one token at a time from what the layer is given."""
    choices: dict[int, list[list[int]]] = {}

    def record(layer: MoeLayer, args: tuple[torch.Tensor, ...]) -> None:
        rows = layer.moe_router["default"].weight @ args[0].detach().flatten(0, 1).T
        topk = min(layer.topk["default"], len(rows))
        choices[layer.layer_index] = [
            sorted(range(len(rows)), key=row.__getitem__)[::-1][:topk] for row in rows.T.tolist()
        ]

    layers = [module for module in model.modules() if isinstance(module, MoeLayer)]
    handles = [layer.register_forward_pre_hook(record) for layer in layers]
    yield choices
    for handle in handles:
        handle.remove()


def count_by_hand(choices: dict[int, list[list[int]]], kinds: list[str | None]) -> Choices:
    """(layer, kind, place, expert) -> tokens; kind None is padding."""
    return Counter(
        (layer, kind, place, expert)
        for layer, tokens in choices.items()
        for kind, experts in zip(kinds, tokens, strict=True)
        if kind is not None
        for place, expert in enumerate(experts)
    )


def as_dictionary(counts: RoutingCounts) -> Choices:
    return {
        (layer, KINDS[kind], place, expert): int(counts.choices[kind, row, place, expert])
        for row, layer in enumerate(counts.layers)
        for kind in range(len(KINDS))
        for place in range(counts.choices.shape[2])
        for expert in range(counts.choices.shape[3])
        if counts.choices[kind, row, place, expert]
    }


@pytest.mark.parametrize("topk", [1, 2, 3])
@pytest.mark.parametrize("tagged", [True, False])
def test_counts_are_those_of_a_loop_over_real_tokens(topk: int, tagged: bool, batch: dict[str, torch.Tensor]) -> None:
    # The second sequence ends in padding, and is marked old from its third token on.
    batch["old_language_mask"] = torch.tensor([[1] * 4 + [0] * 5, [0] * 2 + [1] * 7])
    kinds = ["old" if old else "new" for old in batch["old_language_mask"].flatten().tolist()]
    if not tagged:
        del batch["old_language_mask"]
        kinds = ["untagged"] * 18
    kinds = [
        kind if real else None for kind, real in zip(kinds, batch["attention_mask"].flatten().tolist(), strict=True)
    ]
    model = mixture([4, 1, 2], topk=topk)
    expected: Choices = Counter()
    for rows in (slice(0, 1), slice(1, 2), slice(0, 2)):
        with recorded_choices(model) as choices:
            model(**{name: value[rows] for name, value in batch.items()})
        expected += count_by_hand(choices, kinds[rows.start * 9 : rows.stop * 9])
    sums = model.base_model.objective.metrics.pop()
    assert sums.routing.shapes == ((0, min(topk, 4), 4), (2, min(topk, 2), 2))
    assert as_dictionary(sums.routing) == expected
    assert sums.routing.num_tokens().tolist() == [30, 30]
    assert not model.base_model.objective.metrics.pop().routing.choices.any()


def routing(choices: list[list[int]], num_experts: int) -> LayerRouting:
    logits = torch.zeros(len(choices), num_experts)
    return LayerRouting(logits, torch.tensor(choices), None, True, "default", LayerPlan(num_experts))


def counted(**layers: LayerRouting) -> RoutingCounts:
    counter = RoutingCounter()
    counter.add({int(name[1:]): layer for name, layer in layers.items()}, None, None)
    ((shapes, tensor),) = counter.counts.items()
    return read_counts(shapes, tensor)


def test_choices_that_are_not_used_are_not_counted() -> None:
    """A group that may use the base MLP alone has the index `num_experts` as its second choice."""
    counts = counted(l0=routing([[0, 2], [1, 0]], 2), l5=routing([[0, 4], [3, 1]], 4))
    assert counts.users().tolist() == [[2, 1, 0, 0], [1, 1, 0, 1]]
    assert counts.num_tokens().tolist() == [2, 2]
    shares = shares_for_logs(counts)
    assert shares["expert_share/layer_0/expert_0"] == pytest.approx(2 / 3)
    assert "expert_share/layer_0/expert_2" not in shares
    for layer in (0, 5):
        own = [share for name, share in shares.items() if name.startswith(f"expert_share/layer_{layer}/")]
        assert sum(own) == pytest.approx(1)


def test_shares_of_choices_and_of_first_choices() -> None:
    counts = counted(l3=routing([[0, 1], [2, 0], [2, 1], [2, 0]], 3))
    assert shares_for_logs(counts) == {
        "expert0_share/layer_3": 0.25,
        "expert_share/layer_3/expert_0": 0.375,
        "expert_share/layer_3/expert_1": 0.25,
        "expert_share/layer_3/expert_2": 0.375,
    }
    assert shares_for_logs(RoutingCounts.none(counts.shapes)) == {}


def test_layers_of_adapters_that_take_turns_add_up() -> None:
    small, large = counted(l0=routing([[1]], 2), l1=routing([[0]], 2)), counted(l1=routing([[4, 0]], 5))
    for both in (small + large, large + small, RoutingCounts.none() + small + large):
        assert both.shapes == ((0, 1, 2), (1, 2, 5))
        assert both.users().tolist() == [[0, 1, 0, 0, 0], [2, 0, 0, 0, 1]]
        assert both.firsts().tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 0, 1]]


def test_sums_can_be_saved_and_added_again(batch: dict[str, torch.Tensor]) -> None:
    """As for a checkpoint between two logs."""
    model = mixture([4, 1, 2], aux_loss_coef=0.1)
    metrics = model.base_model.objective.metrics
    model(**batch)
    saved = model.base_model.pop_metric_sums()
    model(**batch)
    once = metrics.pop()
    for name, (total, number) in saved.items():
        metrics.add(name, torch.tensor(total), torch.tensor(number))
    model(**batch)
    twice = metrics.pop()
    assert as_dictionary(twice.routing) == {place: 2 * count for place, count in as_dictionary(once.routing).items()}
    assert twice.losses["aux_loss"] == pytest.approx([2 * value for value in once.losses["aux_loss"]], rel=1e-6)
    assert twice.losses.keys() == once.losses.keys()
