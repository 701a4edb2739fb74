"""From the routing of every sentence to that of every language."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from neuronmoe_plugins.neurons.arrays import FloatArray, IntArray
from neuronmoe_plugins.specialisation.results import LanguageRouting


def language_routing(
    layer: int, values: FloatArray, num_experts: int, labels: IntArray, languages: list[str]
) -> list[LanguageRouting]:
    """Add up what `ExpertObserver` gives of one layer.

    Args:
        layer: Index of the decoder layer.
        values: Per sentence, float32 (sentences, `routing_size(num_experts)`).
        num_experts: Experts of the layer, the base included.
        labels: Language index of every sentence, int64 (sentences,).
        languages: Their names.
    """
    rows = []
    for index, language in enumerate(languages):
        sums = values[labels == index].astype(np.float64).sum(axis=0)
        counts, weights, rest = np.split(sums, [num_experts, 2 * num_experts])
        *pairs, entropy, tokens = rest.tolist()
        keys = (f"{one},{other}" for one, other in combinations(range(num_experts), 2))
        rows.append(
            LanguageRouting(
                layer,
                language,
                round(tokens),
                [round(count) for count in counts],
                [float(weight / count) if count else None for weight, count in zip(weights, counts, strict=True)],
                entropy / tokens,
                {key: round(count) for key, count in zip(keys, pairs, strict=True)},
            )
        )
    return rows
