"""Small random models of two families, and where the published checkpoint lies."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

GOLDEN = Path(__file__).parents[1] / "data" / "moe_a"

TINY = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}


def tiny_model(family: str = "llama", seed: int = 0) -> torch.nn.Module:
    """A random float32 model of three layers, in evaluation mode."""
    torch.manual_seed(seed)
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**TINY)).eval()
    return Qwen2ForCausalLM(Qwen2Config(**TINY)).eval()
