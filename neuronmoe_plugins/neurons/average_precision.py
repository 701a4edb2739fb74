"""How specific every unit of a module is to every language: average precision from one sort for all languages."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.neurons.arrays import FloatArray, IntArray, ScoreArray

if TYPE_CHECKING:
    from torch import Tensor

LabelArray: TypeAlias = NDArray[np.unsignedinteger]

# Values ranked at once: few enough for their 512 KiB of positions to stay in a core's cache.
CHUNK_VALUES = 1 << 16
# The same on a GPU, where about 120 bytes are in use for each.
TORCH_CHUNK_VALUES = 1 << 20


def average_precision(pooled: FloatArray, labels: IntArray, num_languages: int) -> ScoreArray:
    """Average precision of every unit for every language (paper, Eq. 1), ties as in scikit-learn.

    Args:
        pooled: float32 (samples, units), finite.
        labels: language index of every sample, int (samples,), each language present at least once.
        num_languages: number of languages.

    Returns:
        float64 (num_languages, units): what `sklearn.metrics.average_precision_score(labels == language, unit)` gives.

    Raises:
        TypeError: if the activations are not float32.
        ValueError: if a language has no sample, or a sample no language.
    """
    if pooled.dtype != np.float32:
        raise TypeError(f"activations must be float32 to be ranked exactly, not {pooled.dtype}")
    counts = count_samples(labels, num_languages)
    small_labels = labels.astype(np.min_scalar_type(num_languages - 1))
    samples, units = pooled.shape
    rows = max(1, CHUNK_VALUES // samples)
    # So that a chunk has the memory of the last: new memory costs more time than the arithmetic on it, and glibc gives
    # freed memory back unless a block of half the size was freed before (mallopt(3), M_MMAP_THRESHOLD): one, untouched.
    np.empty(8 * rows * samples, dtype=np.float64)
    scores = np.empty((num_languages, units), dtype=np.float64)
    for start in range(0, units, rows):
        scores[:, start : start + rows] = _score_chunk(pooled[:, start : start + rows], small_labels, counts).T
    return scores


def count_samples(labels: IntArray, num_languages: int) -> IntArray:
    """Number of samples of every language, int64 (num_languages,); `ValueError` unless each of them has one."""
    counts = np.bincount(labels, minlength=num_languages)
    if len(counts) != num_languages or not counts.all():
        raise ValueError(f"labels must be the indices of {num_languages} languages, each present; counts are {counts}")
    return counts


def _score_chunk(pooled: FloatArray, labels: LabelArray, counts: IntArray) -> ScoreArray:
    """Scores (units, languages) of a few units, (samples, units)."""
    values, ranked_labels = _rank(pooled, labels)
    group_ends = _group_ends(values)
    tied = ~group_ends.all(axis=1)
    scores = np.empty((len(values), len(counts)), dtype=np.float64)
    scores[~tied] = _score_distinct(ranked_labels[~tied], counts)
    scores[tied] = _score_tied(ranked_labels[tied], group_ends[tied], counts)
    return scores


def _rank(pooled: FloatArray, labels: LabelArray) -> tuple[NDArray[np.int32], LabelArray]:
    """Every unit's activations as integers of the opposite order, ascending, and their labels: (units, samples) both.

    The two halves are sorted one after the other: numpy's stable sort of 16 bits counts, and compares nothing.
    """
    samples, units = pooled.shape
    bits = np.subtract(0, pooled.T, order="C").view(np.int32)  # turns -0.0 into 0.0, as a change of sign would not
    bits ^= (bits >> 31) & 0x7FFFFFFF  # integers are in the order of their floats, but for the negative ones
    row_starts = _row_starts(units, samples)
    order = bits.astype(np.uint16).argsort(axis=1, kind="stable") + row_starts
    order = order.take((bits >> 16).astype(np.int16).take(order).argsort(axis=1, kind="stable") + row_starts)
    return bits.take(order), labels.take(order - row_starts)


def _row_starts(rows: int, columns: int) -> IntArray:
    """Where each row begins in a flattened array, int64 (rows, 1)."""
    return np.arange(0, rows * columns, columns)[:, np.newaxis]


def _group_ends(ordered: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Where the last of equal values stands in its row."""
    ends = np.ones(ordered.shape, dtype=np.bool_)
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=ends[:, :-1])
    return ends


def _score_distinct(ranked_labels: LabelArray, counts: IntArray) -> ScoreArray:
    """Scores (rows, languages) of rows without ties: mean of (rank among the language's samples) / (rank among all).

    A stable sort of the labels puts the ranks of each language's samples side by side.
    """
    ranks = np.arange(1, ranked_labels.shape[1] + 1)
    starts = np.cumsum(counts) - counts
    precision = (1 / ranks).take(ranked_labels.argsort(axis=1, kind="stable"))
    precision *= ranks - np.repeat(starts, counts)
    return np.add.reduceat(precision, starts, axis=1) / counts


def _score_tied(ranked_labels: LabelArray, group_ends: NDArray[np.bool_], counts: IntArray) -> ScoreArray:
    """Scores (rows, languages) of rows with ties: the same mean, with both ranks those of the last of equal values.

    Works on runs, samples of one language with equal values, which a stable sort of the labels puts side by side.
    """
    rows, samples = ranked_labels.shape
    row_starts, starts = _row_starts(rows, samples), np.cumsum(counts) - counts
    groups = np.cumsum(group_ends, dtype=np.int32) - group_ends.ravel()
    groups = groups.take(ranked_labels.argsort(axis=1, kind="stable") + row_starts)
    run_ends = _group_ends(groups)
    run_ends[:, starts[1:] - 1] = True
    ends = np.flatnonzero(run_ends)
    ranks_in_language = np.tile(np.arange(1, samples + 1) - np.repeat(starts, counts), rows).take(ends)
    ranks = (np.flatnonzero(group_ends) % samples + 1).take(groups.take(ends))
    sums = np.diff(ends, prepend=-1) * (ranks_in_language / ranks)
    first_runs = ends.searchsorted((row_starts + starts).ravel())
    return np.add.reduceat(sums, first_runs).reshape(rows, len(counts)) / counts


def average_precision_torch(pooled: Tensor, labels: Tensor, num_languages: int) -> Tensor:
    """Average precision of every unit for every language where the activations are, such as on a GPU.

    The host waits for the device once, to see that every language has a sample.

    Args:
        pooled: float32 (samples, units), finite.
        labels: language index of every sample, int64 (samples,), each language present at least once.
        num_languages: number of languages.

    Returns:
        float64 (num_languages, units), on the device of `pooled`: the numbers of `average_precision`.

    Raises:
        ValueError: if a language has no sample, or a sample no language.
    """
    import torch

    counts = count_samples(labels.cpu().numpy(), num_languages).tolist()
    labels = labels.to(pooled.device)
    samples, units = pooled.shape
    rows = max(1, TORCH_CHUNK_VALUES // samples)
    scores = torch.empty((num_languages, units), dtype=torch.float64, device=pooled.device)
    for start in range(0, units, rows):
        negated, order = (-pooled[:, start : start + rows].T).contiguous().sort(dim=1)
        ranked_labels = labels[order]
        # How many samples are at or above each value, and where the last of them stands.
        ranks = torch.searchsorted(negated, negated, right=True)
        ends = ranks - 1
        for language, count in enumerate(counts):
            hits = ranked_labels == language
            positives = hits.cumsum(dim=1, dtype=torch.int32).gather(1, ends)
            scores[language, start : start + rows] = (hits * positives / ranks.double()).sum(dim=1) / count
    return scores
