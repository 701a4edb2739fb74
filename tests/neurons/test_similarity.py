"""The mean cosine between languages against all pairs of tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuronmoe_plugins.neurons import pooling
from neuronmoe_plugins.neurons.scoring import language_similarity


def test_equals_the_mean_over_all_pairs() -> None:
    torch.manual_seed(0)
    lengths, labels = [4, 7, 1, 3], np.array([0, 1, 0, 1])
    sentences = [torch.randn(length, 16) + 0.5 for length in lengths]
    everything = [pooling.RealTokens.of(torch.ones(1, length)) for length in lengths]
    sums = torch.cat([pooling.sum_of_directions(s[None], t) for s, t in zip(sentences, everything, strict=True)])
    ours = language_similarity(sums.numpy(), np.array(lengths), labels == [[0], [1]])
    tokens = [torch.cat([s for s, label in zip(sentences, labels, strict=True) if label == index]) for index in (0, 1)]
    for row in range(2):
        for column in range(2):
            pairs = torch.nn.functional.cosine_similarity(tokens[row][:, None], tokens[column][None], dim=-1)
            assert ours[row, column] == pytest.approx(pairs.mean().item(), abs=1e-6)
