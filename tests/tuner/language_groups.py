"""Mixtures whose classifiers tell language groups apart, and what they decide."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftModel, get_peft_model

from neuronmoe_plugins.tuner import MoeLayer
from tuner.tiny import GROUPS, moe_config, randomised, tiny_model


def grouped_model(**options: object) -> PeftModel:
    torch.manual_seed(5)
    return randomised(get_peft_model(tiny_model(), moe_config(**GROUPS | options)))


def mixture_layers(model: torch.nn.Module) -> list[MoeLayer]:
    return [module for module in model.modules() if isinstance(module, MoeLayer)]


def fix_groups(layer: MoeLayer, groups: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let `groups`, from hidden states to (batch,), decide instead of the classifier."""
    count = layer.plans["default"].num_groups
    layer._classify = lambda _name, states: torch.nn.functional.one_hot(groups(states), count).float()


def prompts(count: int = 16) -> torch.Tensor:
    return torch.randint(3, 61, (count, 6), generator=torch.Generator().manual_seed(8))


def decided_groups(model: torch.nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """(mixture layers, batch)."""
    with torch.no_grad():
        cache = model(input_ids=input_ids, use_cache=True).past_key_values
    return torch.stack([cache.moe_groups[layer.layer_index, "default"] for layer in mixture_layers(model)])
