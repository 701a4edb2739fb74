"""What a folder of `tokenized_path` says about the tags of its tokens, so that none is reused for other settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_json
from neuronmoe_plugins.integrations.llamafactory.dataset_tags import asked_tags
from neuronmoe_plugins.reading import read_json_object

if TYPE_CHECKING:
    from neuronmoe_plugins.integrations.llamafactory.arguments import MoeDataArguments

# In the folder, beside the host's files: model input -> data set -> number of its tokens.
TAGS_FILE = "neuronmoe_tags.json"


def is_tokenized(data_args: Any) -> bool:
    """Whether the host would load its data from `tokenized_path` instead of tokenising it."""
    from llamafactory.extras.misc import has_tokenized_data

    return data_args.tokenized_path is not None and has_tokenized_data(data_args.tokenized_path)


def save_tags(data_args: MoeDataArguments) -> None:
    """Write the numbers of the tags asked for into the folder that the host has just saved."""
    if asked_tags(data_args):
        write_json(Path(str(data_args.tokenized_path)) / TAGS_FILE, _numbers(data_args))


def check_saved_tags(data_args: MoeDataArguments) -> None:
    """Refuse a folder whose tokens have not the tags asked for; one that is yet to be written has no fault.

    Raises:
        UserError: naming the folder, and the data sets whose number was another.
    """
    if not asked_tags(data_args) or not is_tokenized(data_args):
        return
    folder = Path(str(data_args.tokenized_path))
    saved, now = _read(folder), _numbers(data_args)
    remedy = "remove the folder or name another one to tokenise again"
    missing = [tag.argument for tag in asked_tags(data_args) if tag.name not in saved]
    if missing:
        raise UserError(f"tokenized_path: {folder} was tokenised without {' and '.join(missing)}: {remedy}")
    for name, numbers in now.items():
        if saved[name] != numbers:
            raise UserError(
                f"tokenized_path: {folder} was tokenised with {name} {saved[name]}, not {numbers}: {remedy}"
            )


def _read(folder: Path) -> dict[str, dict[str, int]]:
    file = folder / TAGS_FILE
    if not file.exists():
        return {}
    return read_json_object(file, f"remove {folder} to tokenise again")


def _numbers(data_args: MoeDataArguments) -> dict[str, dict[str, int]]:
    """Model input of each tag asked for -> number of each training and evaluation data set."""
    names = [*(data_args.dataset or []), *(data_args.eval_dataset or [])]
    return {tag.name: tag.of_datasets(names, data_args) for tag in asked_tags(data_args)}
