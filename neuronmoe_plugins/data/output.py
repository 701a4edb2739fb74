"""Publishes finished data sets: their files, their entries in dataset_info.json, and last the manifest."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from neuronmoe_plugins.data.dataset import Finished
from neuronmoe_plugins.data.manifest import FORMAT, MANIFEST
from neuronmoe_plugins.data.spec import DatasetSpec, DataSpec
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_json
from neuronmoe_plugins.reading import read_json_object

INFO = "dataset_info.json"


@dataclass(frozen=True)
class Output:
    """The folder of the data sets.

    Attributes:
        folder: Where it is.
    """

    folder: Path

    def earlier(self) -> dict[str, Any] | None:
        """The manifest that is there, if one is; raises `UserError` if it is damaged."""
        path = self.folder / MANIFEST
        return read_json_object(path, "remove it") if path.exists() else None

    def current(self, fingerprint: str) -> dict[str, Any] | None:
        """The manifest, if all data sets of the run with this fingerprint are there already."""
        manifest = self.earlier()
        if manifest is None or manifest.get("fingerprint") != fingerprint:
            return None
        files = [file for entry in manifest["datasets"] for file in entry["output"]]
        info = self._info()
        is_whole = all(_has_size(self.folder / file["file_name"], file["bytes"]) for file in files) and all(
            _agrees(info.get(entry["name"]), entry) for entry in manifest["datasets"]
        )
        return manifest if is_whole else None

    def place_of(self, dataset: DatasetSpec, spec: DataSpec) -> Path:
        """The file or folder of a data set."""
        return self.folder / (dataset.name if spec.format == "parquet" else f"{dataset.name}.jsonl")

    def require_free(self, spec: DataSpec, published: Sequence[Path]) -> None:
        """Refuse to replace what this run did not write.

        Args:
            spec: Of the run.
            published: Files that an earlier call of the same run put there.

        Raises:
            UserError: naming a file, or an entry of dataset_info.json, of the same name; or another run's manifest.
        """
        remedy = "replace it by --force, rename the data set, or name another folder"
        info = self._info()
        for dataset in spec.datasets:
            path = self.place_of(dataset, spec)
            entry = {"file_name": path.name, "language": dataset.language}
            if path.exists() and path not in published:
                raise UserError(f"{path} is there already; {remedy}")
            if dataset.name in info and not _agrees(info[dataset.name], entry):
                raise UserError(f"{self.folder / INFO} has another entry {dataset.name}; {remedy}")
        if self.earlier() is not None:
            raise UserError(
                f"{self.folder / MANIFEST} is of another specification, or of files that are gone; replace it by "
                "--force, or name another folder"
            )

    def publish(self, spec: DataSpec, finished: Sequence[Finished], fingerprint: str) -> dict[str, Any]:
        """Move the data sets to their places, and write what tells of them.

        Returns:
            The manifest.

        Raises:
            UserError: if a data set that was moved before the run was stopped is gone.
        """
        for dataset in finished:
            place = self.folder / dataset.entry["file_name"]
            if dataset.entry["documents"] and dataset.path.exists():
                if place.is_dir():
                    shutil.rmtree(place)
                dataset.path.replace(place)
            elif dataset.entry["documents"] and not place.exists():
                folder = dataset.path.parents[1]
                raise UserError(f"{place} was there before this run was stopped, and is gone; remove {folder} as well")
        by_name = {dataset.entry["name"]: dataset.entry for dataset in finished}
        entries = [by_name[dataset.name] for dataset in spec.datasets]
        filled = [entry for entry in entries if entry["documents"]]
        info = self._info()
        for entry in filled:
            own = info.get(entry["name"])
            # What a user added to such an entry, as num_samples, stays.
            info[entry["name"]] = own if _agrees(own, entry) else _info_entry(entry)
        write_json(self.folder / INFO, info)
        manifest = {
            "format": FORMAT,
            "neuronmoe_plugins": version("neuronmoe-plugins"),
            "seed": spec.seed,
            "normalise": spec.normalise,
            "near_duplicates": spec.near_duplicates,
            "tokenizer": spec.tokenizer,
            "fingerprint": fingerprint,
            "datasets": filled,
            "without_documents": [entry for entry in entries if not entry["documents"]],
        }
        write_json(self.folder / MANIFEST, manifest)
        return manifest

    def _info(self) -> dict[str, Any]:
        path = self.folder / INFO
        return read_json_object(path, "mend it, or name another folder") if path.exists() else {}


def _info_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """What LLaMA-Factory needs to know of a data set."""
    return {"file_name": entry["file_name"], "columns": {"prompt": "text"}, "language": entry["language"]}


def _agrees(info: Any, entry: dict[str, Any]) -> bool:
    """Whether an entry of dataset_info.json says of a data set what it has to."""
    return isinstance(info, dict) and {**info, **_info_entry(entry)} == info


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
