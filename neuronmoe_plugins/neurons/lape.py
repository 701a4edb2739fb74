"""Language activation probability entropy (LAPE; Tang et al. 2024, sections 2.2 and 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from neuronmoe_plugins.neurons.arrays import FloatArray, ModuleKey, ScoreArray
from neuronmoe_plugins.neurons.metrics import Neuron, NeuronMetric, Samples, locate

# The paper's thresholds: a neuron must exceed the 95th percentile of all activation probabilities in some language, has
# to be among the 1 % of lowest entropy, and belongs to the languages in which it exceeds the 95th percentile.
PROBABILITY_QUANTILE = 0.95
SHARE = 0.01


def activation_probability(active_tokens: FloatArray, samples: Samples) -> ScoreArray:
    """Share of each language's tokens for which a unit is active, above zero.

    Args:
        active_tokens: Number of each sentence's tokens with a gated activation above zero, float32 (samples, units).
        samples: The sentences.

    Returns:
        float64 (languages, units), in 0..1.
    """
    probabilities = np.empty((samples.num_languages, active_tokens.shape[1]))
    for language in range(samples.num_languages):
        own = samples.labels == language
        probabilities[language] = active_tokens[own].sum(axis=0, dtype=np.float64) / samples.tokens[own].sum()
    return probabilities


def entropy(probabilities: ScoreArray) -> ScoreArray:
    """LAPE of units, float64 (units,), from their activation probabilities (languages, units).

    The probabilities are normalised to sum to one over the languages; a unit that is never active has entropy 0.
    """
    totals = probabilities.sum(axis=0)
    shares = np.divide(probabilities, totals, out=np.zeros_like(probabilities), where=totals > 0)
    logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return -(shares * logarithms).sum(axis=0)


def select_by_entropy(
    scores: Mapping[ModuleKey, ScoreArray],
    languages: Sequence[str],
    top_n: int | None,
    min_score: float | None,
    share: float = SHARE,
) -> list[Neuron]:
    """The neurons that the paper's thresholds leave.

    Args:
        scores: Activation probabilities of every module, float64 (languages, units).
        languages: Names of the rows.
        top_n: At most so many per language, if not None.
        min_score: Only those above, if not None.
        share: How many of all units have an entropy low enough.

    Returns:
        Neurons by language, best first. Their score is 1 - entropy / ln(number of languages): 1 for a neuron that only
        one language activates, 0 for one that all activate alike.
    """
    keys = list(scores)
    probabilities = np.concatenate([scores[key] for key in keys], axis=1)
    # The value that this share of all values do not exceed.
    place = max(0, round(probabilities.size * PROBABILITY_QUANTILE) - 1)
    bar = np.partition(probabilities.ravel(), place)[place]
    candidate_entropy = np.where((probabilities > bar).any(axis=0), entropy(probabilities), np.inf)
    lowest = np.argsort(candidate_entropy, kind="stable")[: round(candidate_entropy.size * share)]
    lowest = lowest[np.isfinite(candidate_entropy[lowest])]
    neurons: list[Neuron] = []
    for row, language in enumerate(languages):
        own = lowest[probabilities[row, lowest] > bar]
        specificity = 1 - candidate_entropy[own] / np.log(len(languages))
        chosen = [
            Neuron(language, layer, module, unit, float(score))
            for ((layer, module), unit), score in zip(locate(own, keys, scores), specificity, strict=True)
            if min_score is None or score > min_score
        ]
        neurons += chosen[:top_n]
    return neurons


LAPE = NeuronMetric(
    activation_probability,
    observes="activation functions",
    select=select_by_entropy,
    top_n=None,
    min_score=None,
    share=SHARE,
)
