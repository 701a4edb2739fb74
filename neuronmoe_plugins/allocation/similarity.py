"""How alike a layer treats languages: LayerMoE's measure and its rule (Zhang et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations

from neuronmoe_plugins.errors import UserError

# Rounding in float32 can lift a mean cosine a little above 1.
LARGEST_COSINE = 1.001


def layer_similarity(cosines: Sequence[Sequence[float]], old: Sequence[int], new: Sequence[int]) -> float:
    """Similarity of languages in one layer: the mean of two means, over new-new and over new-old pairs.

    Args:
        cosines: (languages, languages), the mean cosine between MLP inputs of tokens of two languages.
        old: Rows of the languages that the model knows, at least one.
        new: Rows of the languages that it shall learn, at least one. With one there are no new-new pairs, and the
            similarity is the mean over new-old pairs alone.
    """
    new_old = _mean([cosines[mine][other] for mine in new for other in old])
    pairs = list(combinations(new, 2))
    return (_mean([cosines[mine][other] for mine, other in pairs]) + new_old) / 2 if pairs else new_old


def dissimilarities(similarities: Sequence[float]) -> list[Fraction]:
    """1 / sim_l of every layer, exactly for the decimal number that each similarity is written as.

    Raises:
        UserError: naming the layer whose similarity is no positive mean of cosines.
    """
    for layer, similarity in enumerate(similarities):
        if not 0 < similarity <= LARGEST_COSINE:
            raise UserError(
                f"the similarity of layer {layer} is {similarity}; experts in proportion to 1 / similarity need a mean "
                "cosine above 0 and up to 1 in every layer; use another --strategy for this model"
            )
    return [1 / Fraction(str(float(similarity))) for similarity in similarities]


def ceil_shares(weights: Sequence[Fraction], budget: int) -> list[int]:
    """E_l = ceil(w_l / sum(w) * budget), computed exactly.

    The sum is at least the budget, and above it by less than the number of layers.

    Args:
        weights: One per layer, zero or more; where all are zero, the layers share alike.
        budget: What is shared out before rounding up.
    """
    weights = weights if any(weights) else [Fraction(1)] * len(weights)
    return [math.ceil(weight * budget / sum(weights)) for weight in weights]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
