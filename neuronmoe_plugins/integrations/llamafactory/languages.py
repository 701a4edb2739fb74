"""Which of a run's data sets are in old languages and which in new ones, and whether that is what was meant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafactory.extras.constants import FILEEXT2TYPE

from neuronmoe_plugins.errors import UserError, did_you_mean
from neuronmoe_plugins.integrations.llamafactory.tags import LANGUAGE, is_tokenized, read_entries
from neuronmoe_plugins.languages import TAGS

if TYPE_CHECKING:
    from neuronmoe_plugins.integrations.llamafactory.arguments import MoeDataArguments, MoeFinetuningArguments


def check_languages(
    data_args: MoeDataArguments, finetuning_args: MoeFinetuningArguments
) -> tuple[list[str], list[str]]:
    """Every data set has a language, and the language-prior loss some old one.

    Returns:
        What the log should say, and what it should warn of.

    Raises:
        UserError: naming the data set or the argument.
    """
    training = data_args.dataset or []
    names = list(dict.fromkeys([*training, *(data_args.eval_dataset or [])]))
    is_old = LANGUAGE.of_datasets(names, data_args)
    if finetuning_args.lpr_loss_coef and not any(is_old[name] for name in training):
        raise UserError(
            f"lpr_loss_coef has nothing to act on: none of the data sets {', '.join(training)} is in an old language; "
            'add one with "language": "old" in dataset_info.json, or name its code in original_languages'
        )
    tags = {name: str(tag) for name, tag in LANGUAGE.tags_of(names, data_args).items()}
    unused = _unused_languages(tags, data_args)
    warnings = [f"original_languages names {', '.join(unused)}, but no data set is tagged so"] if unused else []
    return [_described(tags, is_old)], warnings


def _unused_languages(tags: dict[str, str], data_args: MoeDataArguments) -> list[str]:
    """Of original_languages, those that no data set has."""
    if data_args.old_languages is None:
        return []
    if not set(tags.values()) - set(TAGS):
        raise UserError(
            'original_languages has no effect: every data set is tagged "old" or "new", and none with a language code'
        )
    return [language for language in data_args.old_languages if language not in tags.values()]


def _described(tags: dict[str, str], is_old: dict[str, int]) -> str:
    groups = []
    for word, number in (("old", 1), ("new", 0)):
        members = [name if tag in TAGS else f"{name} ({tag})" for name, tag in tags.items() if is_old[name] == number]
        groups.append(f"{word}: {', '.join(members) or 'none'}")
    return f"Data sets by language: {'; '.join(groups)}"


def check_datasets(data_args: MoeDataArguments) -> None:
    """Refuse data sets that the host would not find after it has loaded others.

    Data that is tokenised already is not read again, and what is not on this machine cannot be looked for.

    Raises:
        UserError: naming the file, and the data set.
    """
    entries = None if is_tokenized(data_args) else read_entries(data_args)
    if entries is None:
        return
    folder = Path(str(data_args.dataset_dir))
    file = folder / "dataset_info.json"
    for name in [*(data_args.dataset or []), *(data_args.eval_dataset or [])]:
        if name not in entries:
            raise UserError(f"{file} has no data set {name!r}{did_you_mean(name, entries)}")
        _check_entry(f"{file}: {name}", entries[name], folder)


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
