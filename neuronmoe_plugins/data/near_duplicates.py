"""Finds near-duplicate documents: MinHash signatures, cut into bands that are looked up exactly.

A document is the set of its shingles, five tokens in a row. A token is a word, or one character of a script that puts
no blanks between words, so that one rule serves all languages: n-grams of characters would have to be long for texts in
Latin script, whose short ones are shared by unrelated documents, and short for Chinese. Two documents with the Jaccard
similarity s share at least one of b bands of r values with the probability 1 - (1 - s**r)**b (Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, chapter 3).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.errors import UserError

SHINGLE = 5
"""Tokens of a shingle, as in the deduplication of FineWeb."""
MAX_VALUES = 128
"""Values of a signature, at most."""
GROWTH = 4
"""Of the levels of remembered bands: with more, there are fewer places to search, and merging takes longer."""

# Thai, Lao, Myanmar, Khmer, the Japanese syllabaries, and Chinese characters with all their extensions.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED += r"\U00020000-\U0003ffff"
# Accents, points and vowel signs, which \w leaves out and which would cut words of Hindi or Tamil into letters.
_MARKS = (
    r"\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0963\u0966-\u0dff"
)
_LETTERS = rf"[^\W{_UNSPACED}]"
_TOKEN = re.compile(rf"[{_UNSPACED}]|{_LETTERS}+(?:[{_MARKS}]+{_LETTERS}*)*")


class Signer:
    """Makes the bands of documents; the same in every process for the same release of rensa, threshold and seed.

    Args:
        threshold: the Jaccard similarity from which on documents should share a band, in (0, 1).
        seed: of the hash functions, from 0 to 2**64 - 1.

    Raises:
        UserError: the threshold or the seed is out of range, or rensa is missing.
    """

    def __init__(self, threshold: float, seed: int) -> None:
        if not 0 < threshold < 1:
            raise UserError(f"the threshold of near-duplicates is {threshold}; it must be between 0 and 1")
        if not 0 <= seed < 2**64:
            raise UserError(f"the seed of near-duplicates is {seed}; it must be from 0 to 2**64 - 1")
        try:
            from rensa import RMinHash
        except ModuleNotFoundError as error:
            raise UserError(
                "finding near-duplicates needs the package rensa: pip install 'neuronmoe-plugins[data]'"
            ) from error
        self._minhash = RMinHash
        self._seed = seed
        self._num_bands, self._rows = band_shape(threshold)
        # Raw outputs, unlike those of numpy's distributions, stay the same from release to release.
        factors = np.random.PCG64(seed).random_raw(SHINGLE + self._rows) | np.uint64(1)
        self._shingle_factors, self._band_factors = factors[:SHINGLE], factors[SHINGLE:]

    @property
    def num_bands(self) -> int:
        """How many hashes `bands` gives."""
        return self._num_bands

    def bands(self, text: str) -> NDArray[np.uint64]:
        """One hash per band of a text's signature, shape (num_bands,), uint64.

        Case and the form of accented letters make no difference, nor do punctuation and white space, unless the text
        has nothing else. A text of fewer than five tokens is one shingle.
        """
        return self.bands_of([text])[0]

    def bands_of(self, texts: Sequence[str]) -> NDArray[np.uint64]:
        """The bands of several texts, shape (texts, num_bands).

        Many at once, since each call of rensa waits for its threads, on a busy machine for milliseconds.
        """
        tokens = [_tokens(text) for text in texts]
        hashes = map(self._shingle_hashes, self._minhash.hash_token_sets(tokens))
        length = self._num_bands * self._rows
        values = self._minhash.digest_matrix_from_token_hash_sets(list(hashes), length, self._seed)
        signatures = np.array(values.to_rows(), dtype=np.uint64).reshape(len(texts), self._num_bands, self._rows)
        return _mix((signatures * self._band_factors).sum(axis=2, dtype=np.uint64))

    def _shingle_hashes(self, token_hashes: Sequence[int]) -> NDArray[np.uint64]:
        """Hashes of all shingles of a text in their order, shape (max(1, tokens - 4),), from those of its tokens."""
        hashes = np.array(token_hashes, dtype=np.uint64)
        length = min(SHINGLE, len(hashes))
        # A hash of the sequence that is linear in its tokens, as products wrap around at 2**64; mixing makes it even.
        shingles = np.zeros(len(hashes) - length + 1, dtype=np.uint64)
        for position, factor in enumerate(self._shingle_factors[:length]):
            shingles += factor * hashes[position : position + len(shingles)]
        return _mix(shingles)


def _tokens(text: str) -> list[str] | list[bytes]:
    """The tokens of a text; what is no token, if it has none."""
    normal = unicodedata.normalize("NFC", text).casefold()
    return _TOKEN.findall(normal) or [normal.strip().encode(errors="surrogatepass")]


@lru_cache
def band_shape(threshold: float) -> tuple[int, int]:
    """How many bands of how many values tell best, with at most 128 values, whether a similarity is over a threshold.

    The best has the least sum of two areas: that under the probability of sharing a band below the threshold, and that
    over it above (Zhu et al. 2016, LSH Ensemble, and the library datasketch; similarities are taken to be uniform).
    """
    similarity = (np.arange(1000) + 0.5) / 1000
    over = similarity > threshold

    def error(shape: tuple[int, int]) -> float:
        num_bands, rows = shape
        shared = 1 - (1 - similarity**rows) ** num_bands
        return float(np.where(over, 1 - shared, shared).sum())

    shapes = [(num, rows) for num in range(1, MAX_VALUES + 1) for rows in range(1, MAX_VALUES // num + 1)]
    return min(shapes, key=error)


class NearDuplicates:
    """The bands of the documents kept so far, in 9 to 10 bytes for each, and the question which new ones to keep.

    Args:
        num_bands: hashes per document.
    """

    def __init__(self, num_bands: int) -> None:
        self._num_bands = num_bands
        # One run per band; each level has at least GROWTH times the documents of the next.
        self._levels: list[list[_Run]] = []

    def first_of(self, bands: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which documents share no band with a kept one before them, in this or an earlier batch; they are now kept.

        How the documents are cut into batches makes no difference.

        Args:
            bands: shape (documents, num_bands), uint64, in the order of the documents.

        Returns:
            Shape (documents,).

        Raises:
            ValueError: `bands` has another shape or type.
        """
        self._check(bands)
        kept = ~self._known(bands)
        kept[kept] = _first_within(bands[kept])
        self.remember(bands[kept])
        return kept

    def remember(self, bands: NDArray[np.uint64]) -> None:
        """Keep documents without asking whether they share a band; arguments and errors as those of `first_of`."""
        self._check(bands)
        if not len(bands):  # an empty level would only be searched
            return
        level = [_Run.of(np.sort(column)) for column in bands.T]
        while self._levels and len(self._levels[-1][0].values) < GROWTH * len(level[0].values):
            larger = self._levels.pop()
            level = [run.merged(larger.pop(0)) for run in level]  # so that no more than one band is held twice
        self._levels.append(level)

    def _known(self, bands: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which documents share a band with one of an earlier batch, shape (documents,)."""
        known = np.zeros(len(bands), dtype=np.bool_)
        for band, hashes in enumerate(np.ascontiguousarray(bands.T)):
            for level in self._levels:
                known |= level[band].contains(hashes)
        return known

    def _check(self, bands: NDArray[np.uint64]) -> None:
        if bands.ndim != 2 or bands.shape[1] != self._num_bands or bands.dtype != np.uint64:
            raise ValueError(
                f"bands have shape {bands.shape} and type {bands.dtype}, not (…, {self._num_bands}) uint64"
            )


@dataclass(frozen=True)
class _Run:
    """Hashes of one band, and one bit for every possible beginning of a hash, which spares most of the searches."""

    values: NDArray[np.uint64]
    """Sorted, shape (hashes,)."""
    bits: NDArray[np.uint8]
    """Which beginnings there are, packed, the first one highest; from 8 to 16 bits per hash."""

    @classmethod
    def of(cls, values: NDArray[np.uint64]) -> _Run:
        """A run of sorted values."""
        present = np.zeros(1 << (len(values).bit_length() + 3), dtype=np.bool_)
        present[values >> np.uint64(65 - len(present).bit_length())] = True
        return cls(values, np.packbits(present))

    def merged(self, other: _Run) -> _Run:
        """A run of the values of both."""
        values = np.concatenate([other.values, self.values])
        values.sort(kind="stable")  # merges two sorted halves in linear time
        return _Run.of(values)

    def contains(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which hashes are among the values; shape (hashes,)."""
        byte = hashes >> np.uint64(65 - len(self.bits).bit_length())
        bit = (hashes >> np.uint64(62 - len(self.bits).bit_length())).astype(np.uint8) & np.uint8(7)
        found = ((self.bits[byte] << bit) & np.uint8(128)) != 0
        candidates = hashes[found]
        places = np.minimum(np.searchsorted(self.values, candidates), len(self.values) - 1)
        found[found] = self.values[places] == candidates
        return found


def _first_within(bands: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which documents of one batch share no band with a kept one before them, shape (documents,)."""
    # Numbers that stand for (band, hash), below bands.size, and which documents share one with another document.
    groups = np.empty(bands.shape, dtype=np.int64)
    repeated = np.zeros(len(bands), dtype=np.bool_)
    for band, hashes in enumerate(bands.T):
        _, own, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        groups[:, band] = own + band * len(bands)
        repeated |= counts[own] > 1
    kept = np.ones(len(bands), dtype=np.bool_)
    taken = np.zeros(len(bands) * bands.shape[1], dtype=np.bool_)
    # Only documents that share a band with another one of the batch need to be looked at in their order.
    for document in np.flatnonzero(repeated):
        own = groups[document]
        if taken[own].any():
            kept[document] = False
        else:
            taken[own] = True
    return kept


def _mix(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread hashes over all 64 bits, one to one: the finalizer of MurmurHash3 (Appleby 2011)."""
    hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return hashes ^ (hashes >> np.uint64(33))
