"""Which of a run's data sets are in old languages and which in new ones, and whether that is what was meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.llamafactory.dataset_tags import LANGUAGE
from neuronmoe_plugins.integrations.llamafactory.language_codes import TAGS

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
