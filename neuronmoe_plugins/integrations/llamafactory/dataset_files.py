"""The data sets of a run by dataset_info.json: they are in it, and their files are there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafactory.extras.constants import FILEEXT2TYPE

from neuronmoe_plugins.errors import UserError, did_you_mean
from neuronmoe_plugins.integrations.llamafactory.tokenized_data import is_tokenized
from neuronmoe_plugins.reading import read_json_object

if TYPE_CHECKING:
    from neuronmoe_plugins.integrations.llamafactory.arguments import MoeDataArguments


def check_datasets(data_args: MoeDataArguments) -> None:
    """Refuse data sets that the host would not find after it has loaded others.

    Data that is tokenised already is not read again, and what is not on this machine cannot be looked for.

    Raises:
        UserError: naming the file, and the data set.
    """
    folder: Any = data_args.dataset_dir
    if is_tokenized(data_args) or not isinstance(folder, str) or folder == "ONLINE" or folder.startswith("REMOTE:"):
        return
    file = Path(folder) / "dataset_info.json"
    missing = f"{file} does not exist; dataset_dir must be the folder that has it"
    entries = read_json_object(file, "it must map the name of each data set to its entry", missing=missing)
    for name in [*(data_args.dataset or []), *(data_args.eval_dataset or [])]:
        if name not in entries:
            raise UserError(f"{file} has no data set {name!r}{did_you_mean(name, entries)}")
        _check_entry(f"{file}: {name}", entries[name], Path(folder))


def _check_entry(where: str, entry: Any, folder: Path) -> None:
    sources = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be an object with a file_name; got {entry!r}")
    if any(source in entry for source in sources):
        return
    if not isinstance(entry.get("file_name"), str):
        raise UserError(f"{where} has no file_name")
    path = folder / entry["file_name"]
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise UserError(f"{where}: there is no file {path}")
    wrong = [file.name for file in files if file.suffix[1:] not in FILEEXT2TYPE]
    if wrong:
        raise UserError(f"{where}: {wrong[0]} is none of {', '.join(FILEEXT2TYPE)} files")
