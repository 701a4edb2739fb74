"""The random models that are timed, and the device they are on."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "llama-3.2-3b": {
        "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
        "num_attention_heads": 24, "num_key_value_heads": 8,
    },
    # To try a benchmark out, not to measure anything.
    "tiny": {
        "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    },
}  # fmt: skip
# How many experts each layer has, the base MLP included.
EXPERTS = {
    "smollm2-135m": [6, 2, 1, 1, 2, 4],
    # The paper's, for Greek.
    "llama-3.2-3b": [6, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 4, 1, 4, 2, 2, 4, 4],
    "tiny": [3, 2],
}
SHAPE = "llama-3.2-3b" if DEVICE == "cuda" else "smollm2-135m"


def make_model(shape: str, dtype: str, device: str, **changes: Any) -> Any:
    """A model with random weights, with changes to its shape."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape] | changes, tie_word_embeddings=True)
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype)).eval()


def synchronize() -> None:
    """Wait until the GPU, if there is one, has done all that it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def make_profile() -> profile:
    """A profiler of the CPU and of the GPU, if there is one."""
    return profile(activities={ProfilerActivity.CPU, getattr(ProfilerActivity, DEVICE.upper())})
