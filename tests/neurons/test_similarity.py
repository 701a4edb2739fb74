"""The mean cosine between languages against all pairs of tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuronmoe_plugins.neurons import pooling
from neuronmoe_plugins.neurons.metrics import Samples
from neuronmoe_plugins.neurons.similarity import language_similarity, tokens_per_language


def test_equals_the_mean_over_all_pairs() -> None:
    torch.manual_seed(0)
    lengths, labels = [4, 7, 1, 3], np.array([0, 1, 0, 1])
    sentences = [torch.randn(length, 16) + 0.5 for length in lengths]
    sums = torch.cat([pooling.sum_of_directions(s[None], torch.ones(1, len(s), dtype=torch.bool)) for s in sentences])
    ours = language_similarity(sums.numpy(), Samples(labels, 2, np.array(lengths)))
    tokens = [torch.cat([s for s, label in zip(sentences, labels, strict=True) if label == index]) for index in (0, 1)]
    for row in range(2):
        for column in range(2):
            pairs = torch.nn.functional.cosine_similarity(tokens[row][:, None], tokens[column][None], dim=-1)
            assert ours[row, column] == pytest.approx(pairs.mean().item(), abs=1e-6)


def test_tokens_are_counted_by_language() -> None:
    samples = Samples(np.array([0, 1, 0]), 2, np.array([4, 7, 1]))
    assert tokens_per_language(["en", "el"], samples) == {"en": 5, "el": 7}
