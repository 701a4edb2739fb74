"""Reads `manifest.json`: the data sets that `neuronmoe data` wrote into a folder, and what others take of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from neuronmoe_plugins.corpora import CorpusSpec
from neuronmoe_plugins.data.spec import ROLES
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.languages import base_code
from neuronmoe_plugins.reading import read_json_object

MANIFEST = "manifest.json"
FORMAT = 1
REMEDY = "run `neuronmoe data` again"
AGAIN = "to its specification and run `neuronmoe data` again"


@dataclass(frozen=True)
class ManifestDataset:
    """One data set.

    Attributes:
        name: What dataset_info.json calls it.
        language: Its code.
        role: What it is for, one of `ROLES`.
        file_name: Its file, or its folder of Parquet files, below the manifest's folder.
        folder: The manifest's folder.
        documents: Its texts; None if the manifest does not say.
        tokens: Its tokens, without special ones; None if they were not counted.
    """

    name: str
    language: str
    role: str
    file_name: str
    folder: Path
    documents: int | None = None
    tokens: int | None = None

    @property
    def path(self) -> Path:
        """The file or folder with its texts, in the field or column `text`."""
        return self.folder / self.file_name


@dataclass(frozen=True)
class Manifest:
    """The data sets of a folder, in the order of the file."""

    folder: Path
    datasets: tuple[ManifestDataset, ...]

    @property
    def path(self) -> Path:
        """The file that says all this."""
        return self.folder / MANIFEST

    def with_role(self, role: str) -> tuple[ManifestDataset, ...]:
        """The data sets that are for one thing, one of `ROLES`."""
        return tuple(dataset for dataset in self.datasets if dataset.role == role)

    def tokens(self, names: Sequence[str]) -> int | None:
        """The tokens of some of the data sets together; None if one's were not counted."""
        counts = [dataset.tokens for dataset in self.datasets if dataset.name in names]
        return None if None in counts else sum(count or 0 for count in counts)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder that `neuronmoe data` wrote, and look for the files of its data sets.

    Raises:
        UserError: naming the file and key, if there is no manifest, it is damaged or of another version, or the
            text of a data set is not there.
    """
    path = folder / MANIFEST
    missing = f"{folder} holds no data sets (no {MANIFEST}); run `neuronmoe data SPEC.yaml --output {folder}` first"
    record = read_json_object(path, REMEDY, missing=missing, wrong="is no manifest of data sets")
    version = record.get("format")
    if type(version) is not int or version != FORMAT:  # True == 1
        raise UserError(
            f"{path}: format is {version!r}, but this version of neuronmoe-plugins reads {FORMAT}; {REMEDY}"
        )
    entries = record.get("datasets")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: datasets must be a list with one entry per data set; {REMEDY}")
    datasets = tuple(_read_dataset(path, number, entry) for number, entry in enumerate(entries))
    names = [dataset.name for dataset in datasets]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: datasets has {repeated} twice; {REMEDY}")
    return Manifest(folder, datasets)


def _read_dataset(path: Path, number: int, entry: Any) -> ManifestDataset:
    where = f"{path}: datasets[{number}]"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {entry!r}, not an object; {REMEDY}")
    for key in ("name", "language", "role", "file_name"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise UserError(f"{where}.{key} is {entry.get(key)!r}, not a text; {REMEDY}")
    if entry["role"] not in ROLES:
        raise UserError(f"{where}.role is {entry['role']!r}; there are: {', '.join(ROLES)}; {REMEDY}")
    inside = PurePosixPath(entry["file_name"])
    if inside.is_absolute() or ".." in inside.parts:
        raise UserError(f"{where}.file_name is {entry['file_name']!r}, which is not below {path.parent}; {REMEDY}")
    counts = {key: entry.get(key) for key in ("documents", "tokens")}
    for key, count in counts.items():
        if count is not None and (type(count) is not int or count < 0):
            raise UserError(f"{where}.{key} is {count!r}, not a number of {key}; {REMEDY}")
    dataset = ManifestDataset(
        entry["name"], entry["language"], entry["role"], entry["file_name"], path.parent, **counts
    )
    if not _has_text(dataset.path):
        raise UserError(f"{where}: {dataset.name} has no file {dataset.path}; {REMEDY}")
    return dataset


def _has_text(path: Path) -> bool:
    return any(path.glob("*.parquet")) if path.is_dir() else path.is_file()


def analysis_corpora(folder: Path) -> tuple[CorpusSpec, ...]:
    """The corpora of an analysis: the data sets of role analysis, one per language.

    Raises:
        UserError: if the folder cannot be used, has two such data sets for a language, or not two languages.
    """
    manifest = read_manifest(folder)
    chosen = _one_per_language(manifest, "analysis")
    if not chosen:
        raise UserError(f"{manifest.path} has no data set of role analysis; add one for each language {AGAIN}")
    if len(chosen) < 2:
        raise UserError(
            f"{manifest.path} has a data set of role analysis for {next(iter(chosen))} alone, and specificity needs at "
            f"least two languages; add one for another {AGAIN}"
        )
    return _as_corpora(manifest, chosen)


def unseen_corpora(folder: Path) -> tuple[CorpusSpec, ...]:
    """The texts that no training of the folder's sees, for a loss: of role held-out, or else analysis, per language.

    Raises:
        UserError: if the folder cannot be used, has no such data set, or two of them for a language.
    """
    manifest = read_manifest(folder)
    chosen = _one_per_language(manifest, "analysis") | _one_per_language(manifest, "held-out")
    if not chosen:
        raise UserError(
            f"{manifest.path} has no data set of role held-out or analysis; add one for each language {AGAIN}"
        )
    return _as_corpora(manifest, chosen)


def _one_per_language(manifest: Manifest, role: str) -> dict[str, ManifestDataset]:
    """Language -> its data set of this role; raises `UserError` if it has two."""
    chosen: dict[str, ManifestDataset] = {}
    for dataset in manifest.with_role(role):
        earlier = chosen.setdefault(dataset.language, dataset)
        if earlier is not dataset:
            raise UserError(
                f"{manifest.path}: {earlier.name} and {dataset.name} are both of role {role} and language "
                f"{dataset.language}; keep one in its specification and run `neuronmoe data` again"
            )
    return chosen


def _as_corpora(manifest: Manifest, chosen: Mapping[str, ManifestDataset]) -> tuple[CorpusSpec, ...]:
    learned = {base_code(dataset.language) for dataset in manifest.with_role("target")}
    return tuple(
        CorpusSpec(
            language,
            dataset.path,
            f"--data, data set {dataset.name}: ",
            dataset.documents,
            base_code(language) in learned,
        )
        for language, dataset in chosen.items()
    )


def corpora_of_roles(
    folder: Path, needed: Mapping[str, str], others: Mapping[str, str]
) -> dict[str, Sequence[CorpusSpec]]:
    """The data sets of some roles as corpora.

    Args:
        folder: Where they are.
        needed: What they are called in the result -> role, of which there must be one.
        others: The same for roles of which there may be none.

    Raises:
        UserError: if the folder cannot be used, or has none of a role that is needed.
    """
    manifest = read_manifest(folder)
    found: dict[str, Sequence[CorpusSpec]] = {}
    for name, role in {**needed, **others}.items():
        found[name] = tuple(
            CorpusSpec(dataset.language, dataset.path, f"--data, data set {dataset.name}: ", dataset.documents)
            for dataset in manifest.with_role(role)
        )
        if name in needed and not found[name]:
            raise UserError(f"{manifest.path} has no data set of role {role}; add one {AGAIN}")
    return found


def training_datasets(
    manifest: Manifest, wanted: Sequence[str], allocation: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The data sets that a recipe trains on.

    Args:
        manifest: Of what `neuronmoe data` wrote.
        wanted: Languages to learn; none for all that the folder has.
        allocation: The file that names them, for errors.

    Returns:
        The names of the data sets to learn, and of those of the languages to keep.

    Raises:
        UserError: if one of these languages has no data set to learn, or there are none to keep.
    """
    targets = manifest.with_role("target")
    languages = list(dict.fromkeys(dataset.language for dataset in targets))
    if not languages:
        raise UserError(
            f"{manifest.path} has no data set of role target, so there is nothing to learn; add one {AGAIN}"
        )
    missing = [language for language in wanted if language not in languages]
    if missing:
        raise UserError(
            f"{manifest.path} has no data set of role target for {', '.join(missing)}, which {allocation} is for (it "
            f"has {', '.join(languages)}); add one {AGAIN}"
        )
    replays = tuple(dataset.name for dataset in manifest.with_role("replay"))
    if not replays:
        raise UserError(
            f"{manifest.path} has no data set of role replay, and stage 2 needs the languages to keep; add one {AGAIN}"
        )
    return tuple(dataset.name for dataset in targets if not wanted or dataset.language in wanted), replays
