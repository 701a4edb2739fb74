"""Hands out the documents of scanned shards in the order in which they are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.data.arrays import map_array
from neuronmoe_plugins.data.scanning import CANDIDATE, RUN, ScanJob

BATCH = 1 << 19
"""Candidates in memory at once, about."""
KEY_SPACE = 1 << 64


def by_key(jobs: Sequence[ScanJob], batch: int = BATCH) -> Iterator[NDArray[np.void]]:
    """All documents of the shards, in the order of their keys, then of their places; about `batch` at a time.

    Keys are uniform, so equal parts of their range hold about as many documents, whatever the number of shards; equal
    keys are always in one part.

    Args:
        jobs: Scanned shards; the index of each is a candidate's `shard`.
        batch: About how many to give at once.

    Yields:
        `CANDIDATE` arrays; a part may be empty.
    """
    runs = [run for number, job in enumerate(jobs) for run in _runs(number, job)]
    total = sum(len(keys) for _, keys, _ in runs)
    parts = max(1, -(-total // batch))
    bounds = [KEY_SPACE * part // parts for part in range(parts)]
    starts = [_positions(keys, bounds) for _, keys, _ in runs]
    for part in range(parts):
        pieces = [
            _candidates(number, keys[start[part] : start[part + 1]], places[start[part] : start[part + 1]])
            for (number, keys, places), start in zip(runs, starts, strict=True)
        ]
        together = np.concatenate(pieces) if pieces else np.empty(0, CANDIDATE)
        yield together[np.lexsort((together["row"], together["shard"], together["key"]))]


def in_order(number: int, job: ScanJob) -> NDArray[np.void]:
    """The documents of one scanned shard as they stand there, a `CANDIDATE` array; `number` is the shard's index."""
    pieces = [_candidates(number, keys, places) for _, keys, places in _runs(number, job)]
    together = np.concatenate(pieces) if pieces else np.empty(0, CANDIDATE)
    return together[np.argsort(together["row"], kind="stable")]


Run = tuple[int, NDArray[np.uint64], NDArray[np.uint32]]


def _runs(number: int, job: ScanJob) -> Iterator[Run]:
    keys, places = map_array(Path(f"{job.stem}.keys.npy")), map_array(Path(f"{job.stem}.places.npy"))
    for start in range(0, len(keys), RUN):
        yield number, keys[start : start + RUN], places[start : start + RUN]


def _positions(keys: NDArray[np.uint64], bounds: Sequence[int]) -> list[int]:
    """Where each part begins in a sorted run, and where the last ends."""
    return [*np.searchsorted(keys, np.array(bounds, dtype=np.uint64)).tolist(), len(keys)]


def _candidates(number: int, keys: NDArray[np.uint64], places: NDArray[np.uint32]) -> NDArray[np.void]:
    candidates = np.empty(len(keys), CANDIDATE)
    candidates["key"], candidates["shard"] = keys, number
    candidates["row"], candidates["size"] = places[:, 0], places[:, 1]
    return candidates
