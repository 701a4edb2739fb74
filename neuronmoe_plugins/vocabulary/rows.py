"""The rows of new tokens in a model's embedding and head.

Legend: V old rows, W new number of rows, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from neuronmoe_plugins.vocabulary.merges import Merges

MULTIPLE = 64
"""Of rows, so that products with them are fast."""


def padded(rows: int) -> int:
    """As many rows or some more, a multiple of `MULTIPLE`."""
    return -(-rows // MULTIPLE) * MULTIPLE


@torch.no_grad()
def extend_rows(model: Any, merges: Merges, initialise: str, seed: int) -> None:
    """Give a model rows for new tokens; those of old tokens stay as they are, in every bit.

    A tied head stays tied. Rows that are there for padding alone, and no token's, are the mean of all tokens' rows, so
    that their logits are the mean of the logits.

    Args:
        model: One of transformers, with an embedding of V rows.
        merges: The new tokens; the first has an id of at most V.
        initialise: `mean` of the rows of the old tokens that a new one replaces (Yamaguchi et al. 2024, arXiv
            2406.11477), or `random`: normal, with each column's mean and deviation.
        seed: Of `random`.
    """
    first, last = merges.first, merges.first + len(merges.tokens)
    old = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(padded(max(last, old)), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    for values in _weights(model):
        known = values[:first]  # (first, H), or (first,) of a bias
        mean = known.mean(dim=0, dtype=torch.float32)
        if initialise == "mean":
            rows = torch.stack([known[list(pieces)].mean(dim=0, dtype=torch.float32) for pieces in merges.pieces])
        else:
            rows = mean + known.float().std(dim=0) * torch.randn(last - first, *mean.shape, generator=generator)
        values[first:last] = rows.to(values.dtype)
        values[max(last, old) :] = mean.to(values.dtype)


def _weights(model: Any) -> Iterator[torch.Tensor]:
    """The embedding's weight, and the head's and its bias where they are its own."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    yield embedding.weight
    if head is not None and head.weight is not embedding.weight:
        yield head.weight
    if getattr(head, "bias", None) is not None:
        yield head.bias


def modules_with_rows(model: Any) -> list[str]:
    """The last part of the names of the embedding, and of the head where it has rows of its own."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    own = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    return [names[module] for module in own]


def added_bytes(model: Any, rows: int) -> int:
    """How much larger the weights of a model's embedding and head are than with so many rows."""
    return sum((values.shape[0] - rows) * values[0].numel() * values.element_size() for values in _weights(model))
