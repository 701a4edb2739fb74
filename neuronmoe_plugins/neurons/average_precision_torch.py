"""Average precision of every unit for every language where the activations are, such as on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from neuronmoe_plugins.neurons.average_precision import count_samples

# Values ranked at once; about 120 bytes are in use for each.
CHUNK_VALUES = 1 << 20


def average_precision_torch(pooled: Tensor, labels: Tensor, num_languages: int) -> Tensor:
    """Average precision of every unit for every language (paper, Eq. 1), ties as in scikit-learn.

    The host waits for the device once, to see that every language has a sample.

    Args:
        pooled: float32 (samples, units), finite.
        labels: language index of every sample, int64 (samples,), each language present at least once.
        num_languages: number of languages.

    Returns:
        float64 (num_languages, units), on the device of `pooled`: the numbers of
        `neuronmoe_plugins.neurons.average_precision.average_precision`.

    Raises:
        ValueError: if a language has no sample, or a sample no language.
    """
    counts = count_samples(labels.cpu().numpy(), num_languages).tolist()
    labels = labels.to(pooled.device)
    samples, units = pooled.shape
    rows = max(1, CHUNK_VALUES // samples)
    scores = torch.empty((num_languages, units), dtype=torch.float64, device=pooled.device)
    for start in range(0, units, rows):
        _score_chunk(pooled[:, start : start + rows], labels, counts, scores[:, start : start + rows])
    return scores


def _score_chunk(pooled: Tensor, labels: Tensor, counts: list[int], scores: Tensor) -> None:
    """Fill the scores (languages, units) of a few units, (samples, units)."""
    negated, order = (-pooled.T).contiguous().sort(dim=1)
    ranked_labels = labels[order]
    # How many samples are at or above each value, and where the last of them stands.
    ranks = torch.searchsorted(negated, negated, right=True)
    ends = ranks - 1
    for language, count in enumerate(counts):
        hits = ranked_labels == language
        positives = hits.cumsum(dim=1, dtype=torch.int32).gather(1, ends)
        scores[language] = (hits * positives / ranks.double()).sum(dim=1) / count
