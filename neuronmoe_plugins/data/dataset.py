"""One data set from its source to its file: scan, draw, write. Every step is kept, so that a stopped run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.corpora import HubDataset
from neuronmoe_plugins.corpora.samples import sentence_splitter
from neuronmoe_plugins.corpora.unread import unread_files
from neuronmoe_plugins.data.choosing import Choice, Chooser, KeyFiles
from neuronmoe_plugins.data.documents import LanguageFilter, TextSettings
from neuronmoe_plugins.data.examining import EXAMINED, ExamineJob, ExamineSettings, examine_rows
from neuronmoe_plugins.data.losses import require_enough, require_readable
from neuronmoe_plugins.data.near_duplicates import NearDuplicates
from neuronmoe_plugins.data.scanning import ScanSettings
from neuronmoe_plugins.data.shards import KINDS, find_files
from neuronmoe_plugins.data.sources import HUB_FIELD, FileSource, HubRows, HubSource, Source
from neuronmoe_plugins.data.spec import DatasetSpec, DataSpec
from neuronmoe_plugins.data.tokenizer import CountingTokenizer
from neuronmoe_plugins.data.workers import Workers
from neuronmoe_plugins.data.workspace import Workspace, load_array
from neuronmoe_plugins.data.writing import assemble_lines, assemble_parquet, describe_output, write_jobs, write_shard
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import read_json, stamp, write_json


@dataclass(frozen=True)
class Finished:
    """A data set in the workspace.

    Attributes:
        entry: What the manifest says of it.
        path: The file or folder to publish; it is gone once it was.
        keys: Of its documents.
        bands: Files of their signatures, uint64 (documents, bands).
    """

    entry: dict[str, Any]
    path: Path
    keys: KeyFiles
    bands: tuple[Path, ...]

    @classmethod
    def load(cls, folder: Path) -> Finished:
        """Read a finished data set's folder."""
        entry = read_json(folder / "done.json")
        keys, bands = (tuple(sorted(folder.glob(f"{kind}-*.npy"))) for kind in ("keys", "bands"))
        return cls(entry, folder / entry["file_name"], KeyFiles(keys), bands)


@dataclass(frozen=True)
class Context:
    """What all data sets of a run share.

    Attributes:
        spec: Of the run.
        files: Name of a data set -> its local files.
        workspace: Where everything is kept.
        workers: Share the work.
        tokenizer: The tokenizer, if tokens are counted.
    """

    spec: DataSpec
    files: Mapping[str, list[Path]]
    workspace: Workspace
    workers: Workers
    tokenizer: CountingTokenizer | None


def files_of(dataset: DatasetSpec, base: Path) -> list[Path]:
    """The local files of a data set, none of one on the hub; raises `UserError` as `find_files` does.

    Args:
        dataset: Which.
        base: The spec's folder, to which sources are relative.
    """
    try:
        if isinstance(dataset.source, HubDataset):
            dataset.source.require_there()
            return dataset.source.local_files()
        return find_files(dataset.source.patterns, base)
    except UserError as error:
        raise UserError(f"{dataset.name}: {error}") from error


def unread_in(dataset: DatasetSpec, base: Path) -> list[str]:
    """What to say of the files in a data set's folders that are not read."""
    patterns = () if isinstance(dataset.source, HubDataset) else dataset.source.patterns
    return [f"{dataset.name}: {note}" for pattern in patterns for note in unread_files(base / pattern, KINDS)]


def prepare_dataset(
    dataset: DatasetSpec, context: Context, folder: Path, elsewhere: KeyFiles, near: NearDuplicates | None
) -> Finished:
    """Draw and write a data set, or find it finished.

    Args:
        dataset: Which.
        context: The run's.
        folder: The data set's, in the workspace; nothing else may have led to what it holds.
        elsewhere: Keys of the documents of the data sets before.
        near: Knows the signatures of those, and is taught the new ones.

    Raises:
        UserError: for a source that cannot be read, or has too little.
    """
    if not (folder / "done.json").exists():
        source = _open_source(dataset, context)
        require_readable(dataset, source)
        settings = _examine_settings(dataset, context)
        for stale in (*folder.glob("chosen-*"), *folder.glob("keys-*"), *folder.glob("bands-*")):
            stale.unlink()
        examine = _Examination(source, settings, folder, context.workers, dataset.name)
        chooser = Chooser(dataset.amount, examine if settings.needs_texts else None, elsewhere, near, folder)
        choice = chooser.choose(source.batches(), source.count_all)
        require_readable(dataset, source)  # the rows of the hub, which have come only now
        require_enough(dataset, source, choice)
        _write(dataset, context, folder, source, settings.texts, choice)
        return Finished.load(folder)
    finished = Finished.load(folder)
    if near is not None:
        for path in finished.bands:
            near.remember(load_array(path))
    return finished


def _open_source(dataset: DatasetSpec, context: Context) -> Source:
    spec, of_documents = context.spec, dataset.amount.unit != "sentences"
    settings = ScanSettings(
        text=_text_field(dataset),
        form=spec.normalise,
        seed=spec.seed,
        min_characters=dataset.filters.min_characters if of_documents else None,
        max_characters=dataset.filters.max_characters if of_documents else None,
        is_strict=dataset.broken_records == "error",
        unreadable_files=dataset.unreadable_files,
    )
    workspace, workers, name = context.workspace, context.workers, dataset.name
    files = context.files[name]
    if isinstance(dataset.source, HubDataset):
        origin = [str(dataset.source), dataset.revision, dataset.text, describe_files(files)]
        kept = workspace.folder("rows", origin)
        rows = HubRows(dataset.source, dataset.revision, dataset.text, kept, workers.counter(f"{name}: rows streamed"))
        scans = workspace.folder("scan", [origin, asdict(settings)])
        return HubSource(dataset.source, rows, settings, scans, workers, name)
    scans = workspace.folder("scan", [describe_files(files), asdict(settings)])
    return FileSource(files, settings, scans, workers, name)


def _text_field(dataset: DatasetSpec) -> str:
    """Where the texts are in what is read."""
    return HUB_FIELD if isinstance(dataset.source, HubDataset) else dataset.text


def describe_files(files: list[Path]) -> list[list[Any]]:
    """Path, bytes and time of the last change of every file."""
    return [[str(path), *stamp(path)] for path in files]


def _examine_settings(dataset: DatasetSpec, context: Context) -> ExamineSettings:
    of_sentences = dataset.amount.unit == "sentences"
    texts = TextSettings(
        text=_text_field(dataset),
        form=context.spec.normalise,
        seed=context.spec.seed,
        sentences_in=dataset.language if of_sentences else None,
        min_characters=dataset.filters.min_characters if of_sentences else None,
        max_characters=dataset.filters.max_characters if of_sentences else None,
    )
    return ExamineSettings(
        texts=texts,
        language=dataset.language,
        language_probability=dataset.filters.language,
        tokenizer=None if context.tokenizer is None else str(context.tokenizer.path),
        near_duplicates=context.spec.near_duplicates,
    )


class _Examination:
    """Has documents examined, shard by shard; what was found is kept in the data set's folder."""

    def __init__(self, source: Source, settings: ExamineSettings, folder: Path, workers: Workers, name: str) -> None:
        self._source, self._settings, self._folder = source, settings, folder
        self._workers, self._name, self._round = workers, name, 0

    def __call__(self, candidates: NDArray[np.void]) -> tuple[NDArray[np.void], NDArray[np.uint64] | None]:
        order = np.lexsort((candidates["row"], candidates["shard"]))
        by_place = candidates[order]
        numbers, starts = np.unique(by_place["shard"], return_index=True)
        jobs = [
            ExamineJob(
                self._source.jobs[number].shard,
                self._settings,
                np.ascontiguousarray(part["row"]),
                str(self._folder / f"round{self._round:04}-{number:06}"),
            )
            for number, part in zip(numbers.tolist(), np.split(by_place, starts[1:]), strict=True)
        ]
        self._round += 1
        left = [job for job in jobs if not job.done.exists()]
        self._workers.run(examine_rows, left, [len(job.rows) for job in left], f"{self._name}: examining")
        examined = np.empty(len(candidates), EXAMINED)
        examined[order] = np.concatenate([load_array(job.done) for job in jobs])
        if self._settings.near_duplicates is None:
            return examined, None
        found = np.concatenate([load_array(job.bands) for job in jobs])
        bands = np.empty_like(found)
        bands[order] = found
        return examined, bands


def require_libraries(dataset: DatasetSpec) -> None:
    """Find out before anything is read whether the libraries know the data set's language; raises `UserError`."""
    try:
        if dataset.filters.language is not None:
            LanguageFilter(dataset.language, dataset.filters.language)
        if dataset.amount.unit == "sentences":
            sentence_splitter(dataset.language)
    except UserError as error:
        raise UserError(f"{dataset.name}: {error}") from error


def _write(
    dataset: DatasetSpec, context: Context, folder: Path, source: Source, settings: TextSettings, choice: Choice
) -> None:
    chosen = sorted(folder.glob("chosen-*.npy"))
    pieces = folder / "pieces"
    pieces.mkdir(exist_ok=True)
    jobs = write_jobs(source.jobs, settings, chosen, pieces)
    left = [job for job in jobs if not job.done.exists()]
    context.workers.run(write_shard, left, [job.shard.size for job in left], f"{dataset.name}: writing")
    as_parquet = context.spec.format == "parquet"
    file_name = dataset.name if as_parquet else f"{dataset.name}.jsonl"
    assemble: Callable[..., None] = assemble_parquet if as_parquet else assemble_lines
    context.workers.wait_for(partial(assemble, jobs, folder / file_name), f"{dataset.name}: joining")
    totals = {name: sum(job.counts()[name] for job in jobs) for name in ("documents", "characters", "bytes")}
    output = describe_output(folder / file_name) if totals["documents"] else []
    entry = _entry(dataset, source, choice, totals, file_name, output)
    if context.tokenizer is not None and jobs:
        entry["tokenizer"] = context.tokenizer.fit(dataset.name, jobs)
    write_json(folder / "done.json", entry)
    for job in jobs:
        job.lines.unlink()


def _entry(
    dataset: DatasetSpec,
    source: Source,
    choice: Choice,
    totals: Mapping[str, int],
    file_name: str,
    output: list[dict[str, Any]],
) -> dict[str, Any]:
    """What the manifest says of a data set."""
    counts = source.counts()
    return {
        "name": dataset.name,
        "language": dataset.language,
        "role": dataset.role,
        "file_name": file_name,
        **totals,
        "tokens": choice.tokens or None,
        "asked_for": {dataset.amount.unit: dataset.amount.number},
        "complete": choice.reached,
        "text": dataset.text,
        "filters": asdict(dataset.filters),
        "source": {**source.describe(), **({} if dataset.revision is None else {"revision": dataset.revision})},
        "records": counts.records,
        "broken_records": {kind: number for kind, number in sorted(counts.broken.items()) if number},
        "first_broken": counts.first_broken,
        "unreadable": counts.unreadable,
        "passed_over": {
            reason: number for reason, number in sorted((counts.dropped + choice.passed_over).items()) if number
        },
        "output": output,
    }
