"""Sentences in padded batches of like length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

PaddingSide = Literal["left", "right"]


def batches_by_length(token_ids: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Sentence numbers in batches; the longest first, so that memory runs out at the start or never."""
    order = sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]), reverse=True)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def padded(sentences: Sequence[Sequence[int]], side: PaddingSide, device: torch.device) -> dict[str, Tensor]:
    """Token ids, mask and positions, each int64 (batch, longest); positions count real tokens only."""
    longest = max(len(sentence) for sentence in sentences)
    input_ids = torch.zeros(len(sentences), longest, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, sentence in enumerate(sentences):
        real = slice(0, len(sentence)) if side == "right" else slice(longest - len(sentence), longest)
        input_ids[row, real] = torch.tensor(sentence, dtype=torch.long)
        mask[row, real] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    batch = {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions}
    return {name: tensor.to(device) for name, tensor in batch.items()}
