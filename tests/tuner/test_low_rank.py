"""Experts of low rank against full copies with the same weights, W + scaling B A."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neuronmoe_plugins.tuner import MoeLayer
from tuner.expert_layers import Results, assert_same, hidden_states, make_layer, run
from tuner.tiny import FAMILIES

RANK = 4
IMPLEMENTATIONS = ("sorted", "grouped_mm", "loop")


def full_copy(layer: MoeLayer, **options: Any) -> MoeLayer:
    """A mixture of the same base and router whose experts are W + scaling B A."""
    plan, family = layer.plans["default"], options.pop("family", "llama")
    full = make_layer(plan.num_experts, layer.topk["default"], family, **options)
    full.load_state_dict(layer.state_dict(), strict=False)
    with torch.no_grad():
        for name in layer.family.projections:
            base = getattr(layer.base_layer, name)
            down, up = (getattr(layer, f"moe_{name}_lora_{part}")["default"] for part in "AB")
            getattr(full, f"moe_{name}")["default"].copy_(base.weight + layer.scaling["default"] * up @ down)
            if base.bias is not None:
                getattr(full, f"moe_{name}_bias")["default"].copy_(base.bias.expand(plan.num_new_experts, -1))
    return full


def of_low_rank(layer: MoeLayer, full: Results) -> Results:
    """What a full copy's gradients are for A and B: scaling B^T dW, and scaling dW A^T."""
    found = {
        name: value for name, value in full.items() if "proj" not in name and "fc" not in name and "dense" not in name
    }
    for name in layer.family.projections:
        gradient, scaling = full[f"moe_{name}.default"], layer.scaling["default"]
        down, up = (getattr(layer, f"moe_{name}_lora_{part}")["default"].detach() for part in "AB")
        found[f"moe_{name}_lora_A.default"] = scaling * up.mT @ gradient
        found[f"moe_{name}_lora_B.default"] = scaling * gradient @ down.mT
    return found


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("num_experts", "topk"), [(2, 1), (2, 2), (4, 1), (4, 3), (24, 2)])
def test_output_and_gradients_are_those_of_full_copies(implementation: str, num_experts: int, topk: int) -> None:
    layer, states = make_layer(num_experts, topk, expert_rank=RANK), hidden_states(3, 17)
    full = of_low_rank(layer, run(full_copy(layer), states, "loop"))
    assert_same(run(layer, states, implementation), full)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(implementation: str, family: str) -> None:
    layer, states = make_layer(family=family, expert_rank=RANK), hidden_states(2, 11)
    full = of_low_rank(layer, run(full_copy(layer, family=family), states, "loop"))
    assert_same(run(layer, states, implementation), full)
