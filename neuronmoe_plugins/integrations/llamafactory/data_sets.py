"""The data sets that a run names: their entries in dataset_info.json, their files, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamafactory.extras.constants import FILEEXT2TYPE

from neuronmoe_plugins.errors import UserError, did_you_mean
from neuronmoe_plugins.integrations.llamafactory.arguments import MoeDataArguments
from neuronmoe_plugins.reading import read_json_object

# Keys of an entry whose data is not in a file of the folder.
ELSEWHERE = {"hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"}
# How the host's errors begin where nothing is left after texts were tokenised.
TOO_FEW, NOT_VALID = "Cannot find sufficient samples", "Cannot find valid samples"


def info_file(data_args: MoeDataArguments) -> Path:
    """dataset_info.json."""
    return Path(str(data_args.dataset_dir)) / "dataset_info.json"


def all_datasets(data_args: MoeDataArguments) -> list[str]:
    """Names of the training and evaluation data sets, each once."""
    return list(dict.fromkeys([*(data_args.dataset or []), *(data_args.eval_dataset or [])]))


def is_tokenized(data_args: Any) -> bool:
    """Whether the host would load its data from `tokenized_path` instead of tokenising it."""
    from llamafactory.extras.misc import has_tokenized_data

    return data_args.tokenized_path is not None and has_tokenized_data(data_args.tokenized_path)


def read_entries(data_args: MoeDataArguments) -> dict[str, Any] | None:
    """dataset_info.json, read once: name of a data set -> its entry; None where it is not a file on this machine.

    Raises:
        UserError: if there is no such file, or it cannot be read.
    """
    folder: Any = data_args.dataset_dir
    if not isinstance(folder, str) or folder == "ONLINE" or folder.startswith("REMOTE:"):
        return None
    if data_args.entries is None:
        file = info_file(data_args)
        missing = f"{file} does not exist; dataset_dir must be the folder that has it"
        data_args.entries = read_json_object(
            file, "it must map the name of each data set to its entry", missing=missing
        )
    return data_args.entries


def check_datasets(data_args: MoeDataArguments) -> None:
    """Refuse data sets that the host would not find after it has loaded others.

    Data that is tokenised already is not read again, and what is not on this machine cannot be looked for.

    Raises:
        UserError: naming the file, and the data set.
    """
    entries = None if is_tokenized(data_args) else read_entries(data_args)
    if entries is None:
        return
    file = info_file(data_args)
    for name in all_datasets(data_args):
        if name not in entries:
            raise UserError(f"{file} has no data set {name!r}{did_you_mean(name, entries)}")
        where, entry = f"{file}: {name}", entries[name]
        if not isinstance(entry, dict):
            raise UserError(f"{where} must be an object with a file_name; got {entry!r}")
        if ELSEWHERE & entry.keys():
            continue
        if not isinstance(entry.get("file_name"), str):
            raise UserError(f"{where} has no file_name")
        path = file.parent / entry["file_name"]
        files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
        if not files:
            raise UserError(f"{where}: there is no file {path}")
        wrong = [one.name for one in files if one.suffix[1:] not in FILEEXT2TYPE]
        if wrong:
            raise UserError(f"{where}: {wrong[0]} is none of {', '.join(FILEEXT2TYPE)} files")


def nothing_left(error: Exception, data_args: MoeDataArguments) -> UserError | None:
    """What the host's error means where the data sets give nothing to train on; None if it means something else."""
    names = ", ".join(data_args.dataset or [])
    if isinstance(error, StopIteration):
        left = f" beyond val_size: {int(data_args.val_size)}" if data_args.streaming and data_args.val_size else ""
        return UserError(f"dataset: {names}: there is no text{left}")
    if str(error).startswith(TOO_FEW):
        return UserError(f"dataset: {names}: there are fewer tokens than the {data_args.cutoff_len} of cutoff_len")
    if str(error).startswith(NOT_VALID):
        return UserError(f"dataset: {names}: no example is as dataset_info.json says: see their columns and formatting")
    return None


def packing_note(stage: str, data_args: MoeDataArguments) -> str | None:
    """What the log says where texts are packed without a mask between them."""
    packs = data_args.packing is not False if stage == "pt" else data_args.packing
    if not packs or data_args.neat_packing:
        return None
    what, apart = ("texts", "packing: false") if stage == "pt" else ("conversations", "neat_packing: true")
    return (
        f"packing: blocks of {data_args.cutoff_len} tokens join {what}, and a token attends to all before it in its "
        f"block, also of another language: set {apart} to keep them apart"
    )
