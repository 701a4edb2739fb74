"""Where a data set's documents come from: scanned files in the order of their keys, or hub rows as they come."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.corpora import HubDataset
from neuronmoe_plugins.corpora.texts import import_datasets, list_fields
from neuronmoe_plugins.data.scanning import ScanJob, ScanSettings, ShardCounts, by_key, in_order, scan_shard
from neuronmoe_plugins.data.shards import Shard, UnreadableFileError, cut_file
from neuronmoe_plugins.data.workers import Workers, report
from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.files import read_json, sha256_of, write_json, write_text

GROWTH = (1, 2, 4, 8)
"""Chunks of hub rows that are looked at together, at first and later, however many workers there are."""
HUB_FIELD = "text"
"""Of the texts in the chunks, whatever it is called on the hub."""
CHUNK_ROWS = 2048
CHUNK_BYTES = 64 << 20
ZSTD_ADVICE = "pip install 'neuronmoe-plugins[data]'"


class Source(Protocol):
    """The documents of a data set."""

    jobs: list[ScanJob]
    """Scanned shards; a candidate's `shard` is an index into them."""
    count_all: bool
    """Whether it was read to its end in any case."""

    def batches(self) -> Iterator[NDArray[np.void]]:
        """`CANDIDATE` arrays in the order of drawing."""

    def counts(self) -> ShardCounts:
        """What was read."""

    def parts(self) -> Mapping[str, ShardCounts]:
        """What was read of every file, by its path, or of all rows."""

    def describe(self) -> dict[str, Any]:
        """What the manifest says of it; JSON values."""


class FileSource:
    """Files on this machine.

    Args:
        files: In the order in which equal documents take precedence.
        settings: Of the scan.
        folder: Where the scan is kept; the same files with the same settings find it there.
        workers: Share the shards.
        name: Of the data set, for the progress.

    Raises:
        UserError: for a file that cannot be read, as the settings say.
    """

    count_all = True

    def __init__(
        self, files: Sequence[Path], settings: ScanSettings, folder: Path, workers: Workers, name: str
    ) -> None:
        self._parts: defaultdict[str, ShardCounts] = defaultdict(ShardCounts)
        shards = [shard for file in files for shard in self._cut(file, settings)]
        jobs = [ScanJob(shard, settings, str(folder / f"{number:06}")) for number, shard in enumerate(shards)]
        scan(jobs, workers, name)
        for job in jobs:
            self._parts[job.shard.path].add(ShardCounts.load(job.done))
        self.jobs = [job for job in jobs if not self._is_left_out(job.shard.path)]
        self._digests = [DigestJob(str(file), str(folder / f"{number:06}.file")) for number, file in enumerate(files)]
        left = [job for job in self._digests if not job.done.exists() and not self._is_left_out(job.path)]
        workers.run(digest_file, left, [Path(job.path).stat().st_size for job in left], f"{name}: checksums")

    def _cut(self, file: Path, settings: ScanSettings) -> list[Shard]:
        try:
            return cut_file(file)
        except UnreadableFileError as error:
            if settings.unreadable_files == "error":
                raise
            self._parts[str(file)].unreadable = str(error)
            return []

    def _is_left_out(self, path: str) -> bool:
        """A file is left out whole, however far each of its shards could be read."""
        return path in self._parts and self._parts[path].unreadable is not None

    def batches(self) -> Iterator[NDArray[np.void]]:
        """All documents in the order of their keys."""
        return by_key(self.jobs)

    def counts(self) -> ShardCounts:
        """Of all files."""
        total = ShardCounts()
        for own in self._parts.values():
            total.add(own if own.unreadable is None else ShardCounts(unreadable=own.unreadable))
        return total

    def parts(self) -> Mapping[str, ShardCounts]:
        """Of every file that was not left out."""
        return {path: own for path, own in self._parts.items() if own.unreadable is None}

    def describe(self) -> dict[str, Any]:
        """The files with bytes and SHA-256; those that were left out are said to be unreadable."""
        return {"files": [self._describe(job) for job in self._digests]}

    def _describe(self, job: DigestJob) -> dict[str, Any]:
        return {"path": job.path, **({"unreadable": True} if self._is_left_out(job.path) else job.result())}


def scan(jobs: Sequence[ScanJob], workers: Workers, name: str) -> None:
    """Scan those shards that are not scanned yet."""
    left = [job for job in jobs if not job.done.exists()]
    workers.run(scan_shard, left, [job.shard.size for job in left], f"{name}: reading")


class HubSource:
    """Rows of a data set of the hub.

    Args:
        dataset: Which. With `rows`, documents come in the order of their keys; else as they stand, until enough came.
        rows: Streams and keeps them.
        settings: Of the scan.
        folder: Where the scan is kept.
        workers: Share the chunks.
        name: Of the data set, for the progress.

    Raises:
        UserError: if it cannot be read; what came is kept.
    """

    def __init__(
        self, dataset: HubDataset, rows: HubRows, settings: ScanSettings, folder: Path, workers: Workers, name: str
    ) -> None:
        self._dataset, self._settings, self._folder = dataset, settings, folder
        self._workers, self._name = workers, name
        self._chunks = rows.chunks()
        self._counts = ShardCounts()
        self.count_all = dataset.rows is not None
        self.jobs: list[ScanJob] = []

    def batches(self) -> Iterator[NDArray[np.void]]:
        """Documents in the order of their keys, all or none of which are streamed before; or in that of the rows."""
        if self.count_all:
            self._scan(list(self._chunks))
            yield from by_key(self.jobs)
            return
        for turn in range(2**32):
            first = len(self.jobs)
            self._scan(list(islice(self._chunks, GROWTH[min(turn, len(GROWTH) - 1)])))
            if len(self.jobs) == first:
                return
            yield np.concatenate([in_order(number, self.jobs[number]) for number in range(first, len(self.jobs))])

    def _scan(self, shards: Sequence[Shard]) -> None:
        stems = (str(self._folder / Path(shard.path).stem) for shard in shards)
        jobs = [ScanJob(shard, self._settings, stem) for shard, stem in zip(shards, stems, strict=True)]
        scan(jobs, self._workers, self._name)
        for job in jobs:
            self._counts.add(ShardCounts.load(job.done))
        self.jobs += jobs

    def counts(self) -> ShardCounts:
        """Of the rows that were looked at."""
        return self._counts

    def parts(self) -> Mapping[str, ShardCounts]:
        """All of it."""
        return {str(self._dataset): self._counts}

    def describe(self) -> dict[str, Any]:
        """The data set, and the SHA-256 of the rows that were looked at."""
        return {
            "hub": str(self._dataset),
            "rows": self._counts.records,
            "sha256": sha256_of([Path(job.shard.path) for job in self.jobs]),
        }


class HubRows:
    """The texts of a data set's rows in their order, a chunk of rows a file.

    Args:
        dataset: Which rows.
        revision: Commit, branch or tag.
        text: Field of the texts.
        folder: Where the chunks are kept: `rows-N.jsonl` and, last, `rows-N.json`.
        count: Told how many rows came.
    """

    def __init__(
        self, dataset: HubDataset, revision: str | None, text: str, folder: Path, count: Callable[[int], None]
    ) -> None:
        self._dataset, self._revision, self._text = dataset, revision, text
        self._folder, self._count = folder, count
        self._stream: Any = None
        self._rows: Iterator[dict[str, Any]] = iter(())

    def chunks(self) -> Iterator[Shard]:
        """A shard for every chunk, those that are kept first; others are streamed as they are asked for.

        Raises:
            UserError: if the data set cannot be read; what came is kept.
        """
        position: dict[str, Any] = {"rows": 0, "state": None, "end": False}
        for number in range(2**32):
            path = self._folder / f"rows-{number:06}.jsonl"
            done = path.with_suffix(".json")
            if not done.exists():
                if position["end"]:
                    return
                self._fetch(position, path, done)
            position = read_json(done)
            size = path.stat().st_size
            if size:
                yield Shard(str(path), ".jsonl", 0, size, size)

    def _fetch(self, position: dict[str, Any], path: Path, done: Path) -> None:
        """Stream the next chunk."""
        try:
            if self._stream is None:
                self._open(position["state"])
            lines, limit = [], self._dataset.rows
            left = CHUNK_ROWS if limit is None else min(CHUNK_ROWS, limit - position["rows"])
            size = 0
            for record in islice(self._rows, left):
                lines.append(self._line(record))
                size += len(lines[-1])
                if size >= CHUNK_BYTES:
                    break
            state = self._stream.state_dict()
        except UserError:
            raise
        except Exception as error:  # the hub, the network and every file format have errors of their own
            advice = f"{ZSTD_ADVICE}; then " if "zstd not supported" in str(error) else ""
            raise UserError(
                f"{self._dataset} cannot be read beyond row {position['rows']}: {one_line(error)}; {advice}the same "
                "command goes on from there"
            ) from error
        rows = position["rows"] + len(lines)
        write_text(path, "".join(lines))
        ended = size < CHUNK_BYTES and len(lines) < left
        write_json(done, {"rows": rows, "state": state, "end": ended or rows == limit})
        self._count(len(lines))

    def _open(self, state: object) -> None:
        datasets = import_datasets(self._dataset)
        name, config, split = self._dataset.name, self._dataset.config, self._dataset.split
        self._stream = datasets.load_dataset(name, config, split=split, revision=self._revision, streaming=True)
        if state is not None:
            self._stream.load_state_dict(state)
        self._rows = iter(self._stream)

    def _line(self, record: dict[str, Any]) -> str:
        """A row's text in the field `HUB_FIELD`, as JSON that is ASCII, so that even a lone surrogate is kept."""
        if self._text not in record:
            raise UserError(
                f"{self._dataset}: no field {self._text!r}; there are: {list_fields(record)}; name it by `text:`"
            )
        value = record[self._text]
        return json.dumps({HUB_FIELD: value if isinstance(value, str) else None}) + "\n"


@dataclass(frozen=True)
class DigestJob:
    """A file whose digest is wanted.

    Attributes:
        path: The file's.
        stem: Where to write: `STEM.json`.
    """

    path: str
    stem: str

    @property
    def done(self) -> Path:
        """The file that is there when the job is done."""
        return Path(f"{self.stem}.json")

    def result(self) -> dict[str, Any]:
        """`bytes` and `sha256`."""
        return dict(read_json(self.done))


def digest_file(job: DigestJob) -> None:
    """Write size and digest of a file."""
    path = Path(job.path)
    write_json(job.done, {"bytes": path.stat().st_size, "sha256": sha256_of([path], report)})
