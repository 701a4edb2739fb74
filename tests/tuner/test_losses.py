"""The losses in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from neuronmoe_plugins.tuner.losses import language_prior_loss, load_balancing_loss
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
