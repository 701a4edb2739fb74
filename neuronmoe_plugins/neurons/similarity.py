"""How alike the languages look to each layer's MLP (LayerMoE; Zhang et al. 2025)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.neurons.arrays import FloatArray, IntArray, ScoreArray


def language_similarity(sums_of_directions: FloatArray, tokens: IntArray, positives: NDArray[np.bool_]) -> ScoreArray:
    """Mean cosine between the hidden states of two languages, over all pairs of their tokens.

    It is the dot product of the languages' mean unit vectors.

    Args:
        sums_of_directions: For every sentence the sum of its tokens' hidden states, each of length one; float32
            (samples, hidden).
        tokens: Tokens of every sentence, int64 (samples,).
        positives: Which sentences are a language's own, bool (languages, samples).

    Returns:
        float64 (languages, languages), symmetric; the diagonal compares a language's tokens with each other.
    """
    means = np.stack([sums_of_directions[own].sum(axis=0, dtype=np.float64) / tokens[own].sum() for own in positives])
    return means @ means.T
