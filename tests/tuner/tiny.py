"""Small random models of every built-in family, and where the published checkpoint lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoConfig, AutoModelForCausalLM

GOLDEN = Path(__file__).parents[1] / "data" / "moe_a"

TINY = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 1}
# Gemma scales attention by this, and mixes window sizes over its layers.
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "mistral": GROUPED | {"head_dim": 8},
    "qwen3": GROUPED | {"head_dim": 8},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "phi3": GROUPED,
    "olmo2": GROUPED,
    "gpt_neox": {},
    "phi": GROUPED,
}


# An extension whose classifiers restrict routing; its middle layer stays dense.
GROUPS = {"num_experts": [4, 1, 3], "old_num_experts": [2, 1, 3], "group_nums": [3, 0, 2]}


def tiny_config(family: str, **options: Any) -> Any:
    """The configuration of a model of three layers."""
    return AutoConfig.for_model(family, **TINY | FAMILIES[family] | options)


def tiny_model(family: str = "llama", seed: int = 0, **options: Any) -> torch.nn.Module:
    """A random float32 model of three layers, in evaluation mode."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(tiny_config(family, **options)).eval()


def moe_config(**options: Any) -> peft.PeftConfig:
    """A configuration as a program that knows only PEFT makes it."""
    return peft.get_peft_config({"peft_type": "MOE", "task_type": "CAUSAL_LM", "topk": 2, **options})


def randomised(model: torch.nn.Module, seed: int = 11) -> torch.nn.Module:
    """Give every adapter parameter a value of its own, so that a lost or swapped tensor shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".moe_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(batch, sequence, vocabulary), in evaluation mode."""
    with torch.no_grad():
        return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
