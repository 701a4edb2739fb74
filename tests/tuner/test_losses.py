"""The losses in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from neuronmoe_plugins.tuner.inputs import MixtureInputs, majority
from neuronmoe_plugins.tuner.losses import (
    classify_loss,
    language_prior_loss,
    load_balancing_loss,
    sequence_load_balancing_loss,
    sequential_add_loss,
)
from neuronmoe_plugins.tuner.plans import LayerPlan
from neuronmoe_plugins.tuner.routing import route


def test_uniform_routing_has_a_balance_loss_of_topk() -> None:
    # Two tokens choose experts {0, 1}, two {2, 3}; equal logits give P_e = 1/4, and f_e = 1/2.
    selected_experts = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]])
    assert load_balancing_loss(torch.zeros(4, 4), selected_experts).item() == pytest.approx(2.0)


def test_balance_loss_by_hand_without_the_padding() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
    selected_experts = torch.tensor([[0], [0], [2]])
    mask = torch.tensor([True, True, False])
    loss = load_balancing_loss(probabilities.log(), selected_experts, mask)
    assert loss.item() == pytest.approx(3 * (1.0 * 0.65), abs=1e-6)


def test_language_prior_loss_by_hand() -> None:
    probabilities = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]])
    mask = torch.tensor([True, True, False])
    loss = language_prior_loss(probabilities.log(), mask)
    assert loss.item() == pytest.approx(-(math.log(0.5) + math.log(0.25)) / 2, abs=1e-6)
    double = language_prior_loss(probabilities.log(), mask, double_softmax=True)
    by_hand = [-math.log(math.exp(p) / (math.exp(p) + math.exp(1 - p))) for p in (0.5, 0.25)]
    assert double.item() == pytest.approx(sum(by_hand) / 2, abs=1e-6)


def test_losses_without_a_token_are_zero() -> None:
    logits, nothing = torch.randn(3, 4), torch.zeros(3, dtype=torch.bool)
    assert language_prior_loss(logits, nothing).item() == 0
    assert load_balancing_loss(logits, torch.zeros(3, 1, dtype=torch.long), nothing).item() == 0


def test_route_renormalises_from_two_experts_on() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    weights, selected_experts = route(logits, 2)
    assert selected_experts.tolist() == [[0, 1]]
    assert weights.sum().item() == pytest.approx(1.0)
    assert (weights[0, 0] / weights[0, 1]).item() == pytest.approx(math.e, rel=1e-6)
    single, _ = route(logits, 1)
    assert single.item() == pytest.approx(math.exp(2) / (math.exp(2) + math.e + 1), rel=1e-6)


def test_sequence_balance_is_the_weighted_mean_of_the_sequences_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    router_logits = torch.randn(15, 4, generator=generator)
    selected_experts = router_logits.topk(2).indices
    mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool().flatten()
    weights = torch.tensor([4, 2, 0])
    loss = sequence_load_balancing_loss(router_logits, selected_experts, mask, weights)
    alone = [
        load_balancing_loss(router_logits[rows], selected_experts[rows], mask[rows]).item()
        for rows in (slice(0, 5), slice(5, 10), slice(10, 15))
    ]
    assert loss.item() == pytest.approx((4 * alone[0] + 2 * alone[1]) / 6, abs=1e-6)
    assert loss.item() != pytest.approx(load_balancing_loss(router_logits, selected_experts, mask).item(), abs=1e-3)
    assert sequence_load_balancing_loss(router_logits, selected_experts, mask, weights * 0).item() == 0.0


def test_classify_loss_by_hand_over_tagged_sequences() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]])
    loss = classify_loss(probabilities.log(), torch.tensor([1, 2, -100]))
    assert loss.item() == pytest.approx(-(math.log(0.25) + math.log(0.8)) / 2, abs=1e-6)
    assert classify_loss(probabilities.log(), torch.full((3,), -100)).item() == 0.0


def test_sequential_add_loss_by_hand() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]])
    targets = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    loss = sequential_add_loss(probabilities.log(), targets, torch.tensor([True, True, False]))
    assert loss.item() == pytest.approx(-(math.log(0.3) + math.log(0.2) + math.log(0.8)) / 2, abs=1e-6)


def test_target_experts_ignore_minus_100() -> None:
    given = {"target_experts": torch.tensor([[[1, 2], [0, -100], [-100, -100], [3, -100]]])}
    inputs = MixtureInputs.read(given, torch.tensor([[1, 1, 1, 0]]))
    assert inputs.targeted_tokens().tolist() == [True, True, False, False]
    expected = [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert inputs.targets_in_layer(LayerPlan(4)).tolist() == expected
    with pytest.raises(ValueError, match="target_experts names expert 2, but a layer has 2"):
        inputs.targets_in_layer(LayerPlan(2))


def test_groups_have_their_experts_as_targets() -> None:
    inputs = MixtureInputs.read({"group_tags": torch.tensor([[0, 1, 2, 3, -100]])}, None)
    plan = LayerPlan(num_experts=4, num_old_experts=2)
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert inputs.targets_in_layer(plan).int().tolist() == expected
    assert inputs.targeted_tokens().tolist() == [True] * 4 + [False]


def test_a_sequence_is_in_the_group_of_most_of_its_tokens() -> None:
    tags = torch.tensor([[0, 1, 1, -100], [2, -100, -100, -100], [-100] * 4, [0, 0, 1, 1]])
    assert majority(tags).tolist() == [1, 2, -100, 0]
    padded = MixtureInputs.read({"group_tags": tags}, torch.tensor([[1, 0, 0, 0]] * 4))
    assert padded.group_tags.tolist() == [0, 2, -100, 0]
    assert MixtureInputs.read({"group_tags": tags[:, 0]}, None).group_tags.tolist() == [0, 2, -100, 0]


def test_restricted_routing() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().repeat(3, 1)
    weights, selected_experts = route(logits, 2, torch.tensor([1, 2, 4]))
    assert selected_experts.tolist() == [[0, 4], [1, 0], [3, 2]]
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0], [2 / 3, 1 / 3], [4 / 7, 3 / 7]]))
    weights, selected_experts = route(logits, 1, torch.tensor([1, 2, 4]))
    assert selected_experts.tolist() == [[0], [1], [3]]
    torch.testing.assert_close(weights, torch.tensor([[1.0], [0.2], [0.4]]))
    unused = load_balancing_loss(logits, torch.tensor([[0, 4], [1, 0], [3, 2]]))
    assert unused.item() == pytest.approx(4 * (2 / 3 * 0.1 + 1 / 3 * 0.2 + 1 / 3 * 0.3 + 1 / 3 * 0.4), abs=1e-6)
