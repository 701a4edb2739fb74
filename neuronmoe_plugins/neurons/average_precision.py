"""How specific every unit of a module is to every language: average precision from one sort for all languages."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.neurons.arrays import FloatArray, IntArray, ScoreArray

# Values sorted at once; 4 MiB of packed keys stay in the processor's cache.
CHUNK_VALUES = 1 << 19
SIGN_BIT = np.uint32(0x80000000)
NEGATIVE_ZERO = np.uint32(0x7FFFFFFF)  # -0.0 with its bits flipped: one below 0.0
LABEL_BITS = np.uint64(32)
LABEL_MASK = np.uint64(0xFFFFFFFF)


def average_precision(pooled: FloatArray, labels: IntArray, num_languages: int) -> ScoreArray:
    """Average precision of every unit for every language (paper, Eq. 1), ties as in scikit-learn.

    Args:
        pooled: float32 (samples, units), finite.
        labels: language index of every sample, int (samples,), each language present at least once.
        num_languages: number of languages.

    Returns:
        float64 (num_languages, units): what `sklearn.metrics.average_precision_score(labels == language, unit)` gives.
    """
    samples, units = pooled.shape
    scores = np.empty((num_languages, units), dtype=np.float64)
    rows = max(1, CHUNK_VALUES // samples)
    for start in range(0, units, rows):
        chunk = slice(start, start + rows)
        scores[:, chunk] = _chunk_average_precision(pooled[:, chunk], labels, num_languages)
    return scores


def _chunk_average_precision(pooled: FloatArray, labels: IntArray, num_languages: int) -> ScoreArray:
    packed = _ordered_bits(np.ascontiguousarray(pooled.T)).astype(np.uint64) << LABEL_BITS
    packed |= labels.astype(np.uint64)
    packed.sort(axis=1)
    sorted_labels = (packed & LABEL_MASK).astype(np.uint32)
    tie_starts = _tie_starts(packed)
    return np.stack(
        [_language_average_precision(sorted_labels == language, tie_starts) for language in range(num_languages)]
    )


def _ordered_bits(values: FloatArray) -> NDArray[np.uint32]:
    """Map float32 to uint32 that compare as the floats do, with -0.0 equal to 0.0."""
    bits = values.view(np.uint32)
    # A negative float has all its bits flipped, any other only its sign.
    sign_spread = (values.view(np.int32) >> 31).view(np.uint32)
    ordered = bits ^ (sign_spread | SIGN_BIT)
    ordered += ordered == NEGATIVE_ZERO
    return ordered


def _tie_starts(packed: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Position of the first of the equal values around every position of the ascending rows."""
    rows, samples = packed.shape
    starts = np.zeros((rows, samples), dtype=np.int32)
    differs = (packed[:, 1:] ^ packed[:, :-1]) > LABEL_MASK
    np.multiply(differs, np.arange(1, samples, dtype=np.int32), out=starts[:, 1:])
    return np.maximum.accumulate(starts, axis=1, out=starts)


def _language_average_precision(positive: NDArray[np.bool_], tie_starts: NDArray[np.int32]) -> ScoreArray:
    """Mean over the positives of (positives at or above its value) / (samples at or above its value)."""
    rows, samples = positive.shape
    starts = tie_starts.ravel()[np.flatnonzero(positive)].reshape(rows, -1)
    positives = starts.shape[1]
    firsts = np.zeros_like(starts)
    np.multiply(starts[:, 1:] != starts[:, :-1], np.arange(1, positives, dtype=np.int32), out=firsts[:, 1:])
    np.maximum.accumulate(firsts, axis=1, out=firsts)
    return ((positives - firsts) / (samples - starts)).mean(axis=1)
