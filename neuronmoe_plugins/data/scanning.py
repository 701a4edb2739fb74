"""The first pass over a source: what every shard holds, as keys in sorted runs on disk; and what is drawn from them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.data.documents import Keys, normalise
from neuronmoe_plugins.data.reading import NO_FIELD, SURROGATE, Broken, missing_field, read_shard
from neuronmoe_plugins.data.shards import Shard, UnreadableFileError
from neuronmoe_plugins.data.workers import report
from neuronmoe_plugins.data.workspace import map_array, save_array
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import read_json, write_json

RUN = 1 << 20
"""Documents that are sorted at once, in 16 MiB."""
BATCH = 1 << 19
"""Candidates in memory at once, about."""
KEY_SPACE = 1 << 64
CANDIDATE = np.dtype([("key", "<u8"), ("shard", "<u4"), ("row", "<u4"), ("size", "<u4")])
"""A document: its key, where it stands, and its bytes."""
BLANK, SHORT, LONG = DROPPED = ("blank", "shorter than min_characters", "longer than max_characters")

Run = tuple[int, NDArray[np.uint64], NDArray[np.uint32]]


@dataclass(frozen=True)
class ScanSettings:
    """What the keys and the documents of a source depend on.

    Attributes:
        text: Field or column of the texts.
        form: Unicode form.
        seed: Of the keys.
        min_characters, max_characters: Limits of a document.
        is_strict: Whether the first broken record ends it.
        unreadable_files: `warn` leaves such a file out.
    """

    text: str
    form: str
    seed: int
    min_characters: int | None
    max_characters: int | None
    is_strict: bool
    unreadable_files: str


@dataclass
class ShardCounts:
    """What a shard holds.

    Attributes:
        records: Lines or rows, blank ones left out.
        documents: Of these, those that can be drawn; equal ones count each.
        dropped: Reason -> how many records have a text that does not count.
        broken: Kind -> how many records have no readable text.
        first_broken: Where the first of them is.
        unreadable: Why the file cannot be read, if it is left out.
    """

    records: int = 0
    documents: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    first_broken: str | None = None
    unreadable: str | None = None

    def add(self, other: ShardCounts) -> None:
        """Take up the counts of a later shard."""
        self.records += other.records
        self.documents += other.documents
        self.dropped += other.dropped
        self.broken += other.broken
        self.first_broken = self.first_broken or other.first_broken
        self.unreadable = self.unreadable or other.unreadable

    @classmethod
    def load(cls, path: Path) -> ShardCounts:
        """Read the file of one shard."""
        values = read_json(path)
        return cls(**{**values, "dropped": Counter(values["dropped"]), "broken": Counter(values["broken"])})


@dataclass(frozen=True)
class ScanJob:
    """One shard to scan.

    Attributes:
        shard: What to read.
        settings: The source's.
        stem: Where to write: `STEM.keys.npy`, `STEM.places.npy` and, last, `STEM.json`.
    """

    shard: Shard
    settings: ScanSettings
    stem: str

    @property
    def done(self) -> Path:
        """The file that is there when the shard is done."""
        return Path(f"{self.stem}.json")


def scan_shard(job: ScanJob) -> None:
    """Write the keys of a shard's documents, in runs sorted by key, and its counts.

    Raises:
        UserError: for a file that cannot be read, a broken record, or a field that no record has, as the settings say.
    """
    counts, runs = ShardCounts(), _Runs()
    try:
        for row, key, size in _documents(job, counts):
            runs.add(row, key, size)
    except UnreadableFileError as error:
        if job.settings.unreadable_files == "error":
            raise
        counts, runs = ShardCounts(unreadable=str(error)), _Runs()
    save_array(Path(f"{job.stem}.keys.npy"), runs.keys())
    save_array(Path(f"{job.stem}.places.npy"), runs.places())
    write_json(job.done, vars(counts))


def _documents(job: ScanJob, counts: ShardCounts) -> Iterator[tuple[int, int, int]]:
    """Row, key and bytes of every document."""
    settings, keys = job.settings, Keys(job.settings.seed)
    least, most = settings.min_characters or 1, settings.max_characters or float("inf")
    without: Broken | None = None
    for row, value in read_shard(job.shard, settings.text, consumed=report):
        counts.records += 1
        try:
            text = normalise(value, settings.form)  # type: ignore[arg-type]
            encoded = text.encode()
        except AttributeError:
            broken: Broken = value  # type: ignore[assignment]
            without = without or (broken if broken.kind == NO_FIELD else None)
            _count_broken(counts, broken, settings)
        except UnicodeEncodeError:
            _count_broken(counts, Broken(SURROGATE, f"{job.shard.path}, record {row}"), settings)
        else:
            length = len(text)
            if least <= length <= most:
                counts.documents += 1
                yield row, keys.of(encoded), len(encoded)
            else:
                counts.dropped[BLANK if not text else SHORT if length < least else LONG] += 1
    if without is not None and counts.broken[NO_FIELD] == counts.records:
        raise missing_field(without, settings.text, job.shard.path)


def _count_broken(counts: ShardCounts, broken: Broken, settings: ScanSettings) -> None:
    if settings.is_strict:
        raise UserError(f"{broken.where}: {broken.kind}; mend it, or count such records by `broken_records: warn`")
    counts.broken[broken.kind] += 1
    counts.first_broken = counts.first_broken or f"{broken.where}: {broken.kind}"


class _Runs:
    """Rows, keys and sizes, sorted by key a run at a time."""

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.uint64], NDArray[np.uint32]]] = []
        self._start()

    def add(self, row: int, key: int, size: int) -> None:
        self._rows.append(row)
        self._keys.append(key)
        self._sizes.append(min(size, 2**32 - 1))
        if len(self._keys) == RUN:
            self._finish()

    def keys(self) -> NDArray[np.uint64]:
        """uint64 (documents,), a run after the other."""
        self._finish()
        return np.concatenate([keys for keys, _ in self._runs])

    def places(self) -> NDArray[np.uint32]:
        """uint32 (documents, 2): row and bytes, in the order of the keys."""
        self._finish()
        return np.concatenate([places for _, places in self._runs])

    def _start(self) -> None:
        self._rows, self._keys, self._sizes = array("I"), array("Q"), array("I")

    def _finish(self) -> None:
        if not self._keys and self._runs:
            return
        keys = np.array(self._keys, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        places = np.stack([np.array(self._rows, np.uint32), np.array(self._sizes, np.uint32)], axis=1)
        self._runs.append((keys[order], places[order]))
        self._start()


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
    # Where each part begins in a sorted run, and where the last ends.
    starts = [[*np.searchsorted(keys, np.array(bounds, np.uint64)).tolist(), len(keys)] for _, keys, _ in runs]
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


def _runs(number: int, job: ScanJob) -> Iterator[Run]:
    keys, places = map_array(Path(f"{job.stem}.keys.npy")), map_array(Path(f"{job.stem}.places.npy"))
    for start in range(0, len(keys), RUN):
        yield number, keys[start : start + RUN], places[start : start + RUN]


def _candidates(number: int, keys: NDArray[np.uint64], places: NDArray[np.uint32]) -> NDArray[np.void]:
    candidates = np.empty(len(keys), CANDIDATE)
    candidates["key"], candidates["shard"] = keys, number
    candidates["row"], candidates["size"] = places[:, 0], places[:, 1]
    return candidates
