"""Which data sets are in a language that the base model already knows: the `language` of dataset_info.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from neuronmoe_plugins.errors import UserError

if TYPE_CHECKING:
    from neuronmoe_plugins.integrations.llamafactory.arguments import MoeDataArguments


def extend_data_parser(module: ModuleType) -> None:
    """Let `llamafactory.data.parser` keep the `language` of each entry."""
    wrapt.wrap_function_wrapper(module, "DatasetAttr.join", _join_with_language)


def is_old_language(tag: object, old_languages: list[str] | None) -> bool:
    """Whether a data set with this tag is in an old language.

    Args:
        tag: `old`, `new`, or a language code.
        old_languages: The codes of `original_languages`, None when it is not given.

    Raises:
        UserError: on a tag that is none of these, or a code without `original_languages`.
    """
    if tag in ("old", "new"):
        return tag == "old"
    if not isinstance(tag, str) or not tag:
        raise UserError(f'"language" must be "old", "new" or a language code; got {tag!r}')
    if old_languages is None:
        raise UserError(
            f'"language": "{tag}" is neither "old" nor "new": name the old languages in the YAML, such as '
            "original_languages: en,es,zh"
        )
    return tag in old_languages


def old_language_of_datasets(names: list[str], data_args: MoeDataArguments) -> dict[str, bool]:
    """Look every data set up in dataset_info.json.

    Returns:
        Name of the data set -> whether it is in an old language.

    Raises:
        UserError: naming the file and the data set that has no tag or a wrong one.
    """
    from llamafactory.data.parser import get_dataset_list

    entries = dict(zip(names, get_dataset_list(names, data_args.dataset_dir), strict=True))
    where = Path(str(data_args.dataset_dir)) / "dataset_info.json"
    untagged = [name for name, entry in entries.items() if getattr(entry, "language", None) is None]
    if untagged:
        raise UserError(
            f'{where}: generate_lang_mask needs a "language" ("old", "new" or a code) in every data set, but '
            f"{', '.join(untagged)} has none"
        )
    old = {}
    for name, entry in entries.items():
        try:
            old[name] = is_old_language(entry.language, data_args.old_languages)
        except UserError as error:
            raise UserError(f"{where}: {name}: {error}") from None
    return old


def _join_with_language(
    wrapped: Callable[..., None], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Stand in for `DatasetAttr.join(attr)`."""
    wrapped(*args, **kwargs)
    entry = args[0] if args else kwargs["attr"]
    if "language" in entry:
        instance.language = entry["language"]
