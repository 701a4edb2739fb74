"""Adapters with what they may save beside their layers: `moe` with both kinds of experts, and LoRA as control."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import peft
import torch
from packaging.version import Version
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers.integrations.peft import MIN_PEFT_VERSION

from tuner.tiny import moe_config, tiny_model

WEIGHTS = "adapter_model.safetensors"
# Its own methods then load an adapter, and neither disable nor activate one.
TOO_OLD_FOR_TRANSFORMERS = Version(peft.__version__) < Version(MIN_PEFT_VERSION)
Config = Callable[..., peft.PeftConfig]


def moe(**options: Any) -> peft.PeftConfig:
    return moe_config(num_experts=[3, 1, 2], **options)


def ranks(**options: Any) -> peft.PeftConfig:
    """The same with experts of low rank."""
    return moe(expert_rank=[3, 1, 2], **options)


def lora(**options: Any) -> peft.PeftConfig:
    return peft.LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "up_proj"], "r": 2, **options})


# What is saved beside the method's layers -> names of its tensors in the file.
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
ROWS = "model.embed_tokens.token_adapter.trainable_tokens_delta"
BESIDE: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nothing": ({}, set()),
    "head": ({"modules_to_save": ["lm_head"]}, {HEAD}),
    "both ends": ({"modules_to_save": ["embed_tokens", "lm_head"]}, {HEAD, EMBEDDING}),
    "norms": ({"modules_to_save": ["layers.1.input_layernorm"]}, {"model.layers.1.input_layernorm.weight"}),
    "tokens": ({"trainable_token_indices": [5, 3]}, {ROWS}),
    "tokens by module": ({"trainable_token_indices": {"embed_tokens": [5], "lm_head": [2, 7]}}, set()),
    "head and tokens": ({"modules_to_save": ["lm_head"], "trainable_token_indices": [5, 3]}, {HEAD, ROWS}),
}
OLD = not hasattr(BaseTuner, "delete_adapter")
if OLD:  # there, only an embedding has rows
    del BESIDE["tokens by module"]


@cache
def made_once(tied: bool) -> nn.Module:
    return tiny_model(tie_word_embeddings=tied)


def base(tied: bool = False) -> nn.Module:
    return copy.deepcopy(made_once(tied))


def changed(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every trainable parameter gets another value, as training would give it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or "original_module" in name:
                continue
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def tensors_beside(tensors: dict[str, torch.Tensor]) -> set[str]:
    return {name.removeprefix("base_model.model.") for name in tensors if "moe_" not in name and "lora_" not in name}
