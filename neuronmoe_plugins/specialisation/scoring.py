"""Average precision of an expert's neurons over the sentences that it saw (paper, equation 6)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuronmoe_plugins.neurons.arrays import IntArray, ScoreArray
from neuronmoe_plugins.neurons.average_precision import average_precision
from neuronmoe_plugins.neurons.average_precision_torch import average_precision_torch


def measured_languages(
    seen: NDArray[np.bool_], labels: IntArray, num_languages: int, missing: str, min_sentences: int
) -> list[int]:
    """For which languages an expert is measured.

    Args:
        seen: Whether a sentence has a token at the expert, bool (sentences,).
        labels: Language index of every sentence, int64 (sentences,).
        num_languages: Number of languages.
        missing: `drop` or `zero`, see :func:`score_expert`.
        min_sentences: The language needs so many sentences with a token; so do the others together, where sentences
            without one are dropped.
    """
    counts = np.bincount(labels[seen], minlength=num_languages)
    others = counts.sum() - counts if missing == "drop" else np.bincount(labels, minlength=num_languages)
    enough = (counts >= min_sentences) & (others >= min_sentences)
    return [int(language) for language in np.flatnonzero(enough)]


def score_expert(
    pooled: Tensor, seen: NDArray[np.bool_], labels: IntArray, languages: list[int], missing: str
) -> dict[int, ScoreArray]:
    """Average precision of every unit for some languages.

    Args:
        pooled: Mean activations, float32 (sentences, units); what a sentence without a token has does not count.
        seen: Whether a sentence has a token at the expert, bool (sentences,).
        labels: Language index of every sentence, int64 (sentences,).
        languages: Which to score.
        missing: What a sentence without a token is: left out (`drop`), or one with the activation 0 (`zero`).

    Returns:
        Language index -> float64 (units,).
    """
    if not languages:
        return {}
    rows = torch.from_numpy(seen).to(pooled.device)
    values = pooled[rows] if missing == "drop" else torch.where(rows.unsqueeze(1), pooled, 0.0)
    own_labels = labels[seen] if missing == "drop" else labels
    present, compact = np.unique(own_labels, return_inverse=True)
    if values.is_cuda:
        on_device = torch.from_numpy(compact).to(values.device)
        scores: ScoreArray = average_precision_torch(values, on_device, len(present)).cpu().numpy()
    else:
        scores = average_precision(values.numpy(), compact, len(present))
    return {language: scores[int(np.searchsorted(present, language))] for language in languages}
