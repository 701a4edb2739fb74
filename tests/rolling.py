"""What lm-eval's rolling likelihood has to be, by transformers alone."""

from __future__ import annotations

from typing import Any


def document_nats(model: Any, tokens: list[int], prefix: int, max_length: int) -> float:
    """-ln P(tokens), at most max_length tokens predicted at a time and as many read, `prefix` before the first."""
    import torch

    sequence = [prefix, *tokens]
    nats = 0.0
    for start in range(0, len(tokens), max_length):
        end = min(start + max_length, len(tokens))
        first_read = max(0, end - max_length)
        with torch.no_grad():
            logits = model(torch.tensor([sequence[first_read:end]])).logits[0]
        targets = torch.tensor(sequence[start + 1 : end + 1])
        nats += torch.nn.functional.cross_entropy(logits[start - first_read :], targets, reduction="sum").item()
    return nats
