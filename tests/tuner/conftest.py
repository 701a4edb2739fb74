"""The published code's tiny checkpoint with the outputs that it gives, and a small batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tuner.tiny import GOLDEN


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two sequences of nine tokens, the second with three tokens of padding; the first is in an old language."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 61, (2, 9), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 6:] = 0
    labels = input_ids.masked_fill(attention_mask == 0, -100)
    old_language_mask = torch.tensor([[1] * 9, [0] * 9])
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "old_language_mask": old_language_mask,
    }


@pytest.fixture
def golden() -> dict[str, torch.Tensor]:
    """Inputs and outputs of the published code on `moe_a`."""
    with np.load(GOLDEN / "expected.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture
def golden_base() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "base")
