"""How alike the languages look to each layer's MLP (LayerMoE; Zhang et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuronmoe_plugins.neurons.arrays import FloatArray, ScoreArray
from neuronmoe_plugins.neurons.metrics import Samples


def language_similarity(sums_of_directions: FloatArray, samples: Samples) -> ScoreArray:
    """Mean cosine between the hidden states of two languages, over all pairs of their tokens.

    It is the dot product of the languages' mean unit vectors.

    Args:
        sums_of_directions: For every sentence the sum of its tokens' hidden states, each of length one; float32
            (samples, hidden).
        samples: The sentences.

    Returns:
        float64 (languages, languages), symmetric; the diagonal compares a language's tokens with each other.
    """
    means = np.empty((samples.num_languages, sums_of_directions.shape[1]))
    for language in range(samples.num_languages):
        own = samples.labels == language
        means[language] = sums_of_directions[own].sum(axis=0, dtype=np.float64) / samples.tokens[own].sum()
    return means @ means.T


def tokens_per_language(languages: Sequence[str], samples: Samples) -> dict[str, int]:
    """How many tokens of each language were compared."""
    counts = np.bincount(samples.labels, weights=samples.tokens, minlength=len(languages))
    return {language: int(count) for language, count in zip(languages, counts, strict=True)}
