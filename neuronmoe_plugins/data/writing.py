"""The last pass: drawn documents, in the order of the source, into the file or folder that LLaMA-Factory reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuronmoe_plugins.data.documents import Keys, TextMaker, TextSettings
from neuronmoe_plugins.data.examining import changed, read_rows
from neuronmoe_plugins.data.scanning import ScanJob
from neuronmoe_plugins.data.shards import Shard
from neuronmoe_plugins.data.workers import report
from neuronmoe_plugins.data.workspace import map_array
from neuronmoe_plugins.files import read_json, replaced_file, sha256_of, write_json

PARQUET_DOCUMENTS = 100_000
PARQUET_BYTES = 256 << 20
"""A Parquet file is full with so many documents, or so many bytes of text."""

# json.dumps makes a new encoder at every call that asks for anything but ASCII.
_to_json = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class WriteJob:
    """The drawn documents of one shard.

    Attributes:
        shard: Where they are.
        number: The shard's index.
        settings: How texts are made.
        chosen: Files of `CANDIDATE`s, each by place.
        stem: Where to write: `STEM.jsonl` and, last, `STEM.json`.
    """

    shard: Shard
    number: int
    settings: TextSettings
    chosen: tuple[str, ...]
    stem: str

    @property
    def done(self) -> Path:
        """The file that is there when the job is done."""
        return Path(f"{self.stem}.json")

    @property
    def lines(self) -> Path:
        """The file of the documents."""
        return Path(f"{self.stem}.jsonl")

    def counts(self) -> dict[str, int]:
        """`documents`, `characters` and `bytes` of the texts."""
        return dict(read_json(self.done))


def write_jobs(jobs: Sequence[ScanJob], settings: TextSettings, chosen: Sequence[Path], folder: Path) -> list[WriteJob]:
    """One job for every shard with a drawn document, in order."""
    shards = [map_array(path)["shard"] for path in chosen]
    numbers = np.unique(np.concatenate([np.unique(own) for own in shards])).tolist() if shards else []
    names = tuple(map(str, chosen))
    return [WriteJob(jobs[n].shard, n, settings, names, str(folder / f"{n:06}")) for n in numbers]


def write_shard(job: WriteJob) -> None:
    """Write the drawn documents of a shard as lines of JSON with the field `text`; then their counts.

    Raises:
        UserError: if the file has other texts than those that were drawn.
    """
    drawn = _drawn(job)
    maker, keys = TextMaker(job.settings), Keys(job.settings.seed)
    takes_all = job.settings.sentences_in is None
    characters = size = 0
    with replaced_file(job.lines) as file:
        texts = read_rows(job.shard, job.settings.text, drawn["row"], report)
        for key, (_, text) in zip(drawn["key"].tolist(), texts, strict=True):
            document = maker.document(text)
            encoded = document.encode()
            if keys.of(encoded) != key:
                raise changed(job.shard)
            if not takes_all:
                document = maker.written(text) or ""
                encoded = document.encode()
            characters += len(document)
            size += len(encoded)
            file.write(b'{"text": %b}\n' % _to_json(document).encode())
    write_json(job.done, {"documents": len(drawn), "characters": characters, "bytes": size})


def assemble_lines(jobs: Sequence[WriteJob], path: Path) -> None:
    """Put the shards' files one after the other into one."""
    with replaced_file(path) as file:
        for job in jobs:
            with job.lines.open("rb") as lines:
                shutil.copyfileobj(lines, file, 1 << 20)


def assemble_parquet(jobs: Sequence[WriteJob], folder: Path) -> None:
    """Write the documents of the shards' files into a folder of Parquet files with the column `text`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, texts in enumerate(_portions(jobs)):
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / f"{number:05}.parquet")


def sample_texts(jobs: Sequence[WriteJob], most: int) -> list[str]:
    """About so many of the texts in the shards' files, spread over all of them, or all there are."""
    texts: list[str] = []
    chosen = jobs[:: -(-len(jobs) // most)]
    for job in chosen:
        with job.lines.open("rb") as lines:
            size = job.lines.stat().st_size
            for place in range(0, size, max(1, size * len(chosen) // most)):
                if place > lines.tell():
                    lines.seek(place)
                    lines.readline()  # the rest of a line
                if line := lines.readline():
                    texts.append(json.loads(line)["text"])
    return texts


def describe_output(path: Path) -> list[dict[str, Any]]:
    """Name, bytes and SHA-256 of the file, or of each in the folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    names = [file.relative_to(path.parent).as_posix() for file in files]
    return [
        {"file_name": name, "bytes": file.stat().st_size, "sha256": sha256_of([file])}
        for name, file in zip(names, files, strict=True)
    ]


def _drawn(job: WriteJob) -> Any:
    """The `CANDIDATE`s of the shard, by row."""
    pieces = []
    for path in job.chosen:
        chosen = map_array(Path(path))
        first, last = np.searchsorted(chosen["shard"], [job.number, job.number + 1])
        pieces.append(chosen[first:last])
    drawn = np.concatenate(pieces)
    return drawn[np.argsort(drawn["row"], kind="stable")]


def _portions(jobs: Sequence[WriteJob]) -> Iterator[list[str]]:
    texts: list[str] = []
    size = 0
    for job in jobs:
        with job.lines.open("rb") as lines:
            for line in lines:
                texts.append(json.loads(line)["text"])
                size += len(line)
                if len(texts) == PARQUET_DOCUMENTS or size >= PARQUET_BYTES:
                    yield texts
                    texts, size = [], 0
    if texts:
        yield texts
