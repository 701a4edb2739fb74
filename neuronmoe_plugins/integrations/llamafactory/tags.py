"""What dataset_info.json says about all tokens of a data set: whether its language is old, and its language group."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_json
from neuronmoe_plugins.integrations.llamafactory.arguments import MoeDataArguments, MoeFinetuningArguments
from neuronmoe_plugins.integrations.llamafactory.data_sets import all_datasets, info_file, is_tokenized, read_entries
from neuronmoe_plugins.integrations.stand_ins import Call
from neuronmoe_plugins.languages import TAGS, check_tag, twin
from neuronmoe_plugins.reading import read_json_object

GROUP_TAG = re.compile(r"g(\d+)", re.ASCII)
# In the folder, beside the host's files: model input -> data set -> number of its tokens.
TAGS_FILE = "neuronmoe_tags.json"


@dataclass(frozen=True)
class TokenTag:
    """A number that each token gets from its data set.

    Attributes:
        name: The model input of neuronmoe_plugins.tuner that it becomes.
        argument: The data argument that asks for it.
        key: Its key in the data set's entry of dataset_info.json.
        form: What the entry may say, for errors.
        padding: The number that padding tokens get.
        read: (what the entry says, data arguments) -> the number; raises UserError.
    """

    name: str
    argument: str
    key: str
    form: str
    padding: int
    read: Callable[[object, MoeDataArguments], int]

    @property
    def column(self) -> str:
        """The column that carries a text's number until the text is tokenised."""
        return f"_{self.name}"

    def of_datasets(self, names: list[str], data_args: MoeDataArguments) -> dict[str, int]:
        """Look every data set up in dataset_info.json.

        Returns:
            Name of the data set -> its tokens' number.

        Raises:
            UserError: naming the file and the data set that has no tag or a wrong one.
        """
        numbers = {}
        for name, tag in self.tags_of(names, data_args).items():
            try:
                numbers[name] = self.read(tag, data_args)
            except UserError as error:
                raise UserError(f"{info_file(data_args)}: {name}: {error}") from None
        return numbers

    def tags_of(self, names: list[str], data_args: MoeDataArguments) -> dict[str, object]:
        """As :meth:`of_datasets`, with what the entry says instead of the number."""
        from llamafactory.data.parser import get_dataset_list

        if data_args.dataset_dir == "ONLINE":
            raise UserError(
                f'dataset_dir: ONLINE: {self.argument} reads the "{self.key}" of each data set from dataset_info.json: '
                "name a folder with one, where hf_hub_url tells what to download"
            )
        source = read_entries(data_args) or data_args.dataset_dir
        entries = dict(zip(names, get_dataset_list(names, source), strict=True))
        tags = {name: getattr(entry, self.key, None) for name, entry in entries.items()}
        untagged = [name for name, tag in tags.items() if tag is None]
        if untagged:
            raise UserError(
                f'{info_file(data_args)}: {self.argument} needs a "{self.key}" ({self.form}) in every data set, but '
                f"{', '.join(untagged)} has none"
            )
        return tags


def asked_tags(data_args: Any) -> list[TokenTag]:
    """The tags that the data arguments ask for; none of those of another method."""
    return [tag for tag in TOKEN_TAGS if getattr(data_args, tag.argument, False)]


def is_old_language(tag: object, data_args: MoeDataArguments) -> int:
    """1 if a data set with this tag is in a language that the base model already knows, else 0.

    Args:
        tag: `old`, `new`, or a language code.
        data_args: Data arguments; `original_languages` lists the codes of old languages.

    Raises:
        UserError: on a tag that is none of these, a code without `original_languages`, or one that is written there
            another way.
    """
    if not isinstance(tag, str):
        raise UserError(f'"language" must be "old", "new" or a language code; got {tag!r}')
    check_tag(tag)
    if tag in TAGS:
        return int(tag == "old")
    if data_args.old_languages is None:
        raise UserError(
            f'"language": "{tag}" is neither "old" nor "new": name the old languages in the YAML, such as '
            "original_languages: en,es,zh"
        )
    similar = twin(tag, data_args.old_languages)
    if tag not in data_args.old_languages and similar is not None:
        raise UserError(
            f'"language": "{tag}" would count as new, but original_languages has {similar}: write both alike, or tag '
            'the data set "new"'
        )
    return int(tag in data_args.old_languages)


def language_group(tag: object, _data_args: MoeDataArguments) -> int:
    """The number of a language group.

    Args:
        tag: `g0`, `g1`, ..., or 0, 1, ...

    Raises:
        UserError: on any other tag.
    """
    if isinstance(tag, int) and not isinstance(tag, bool) and tag >= 0:
        return tag
    match = GROUP_TAG.fullmatch(tag) if isinstance(tag, str) else None
    if match is None:
        raise UserError(f'"group_tag" must be "g0", "g1" and so on, or an integer 0, 1 and so on; got {tag!r}')
    return int(match[1])


LANGUAGE = TokenTag("old_language_mask", "generate_lang_mask", "language", '"old", "new" or a code', 0, is_old_language)
GROUP = TokenTag("group_tags", "sequential_add_mask", "group_tag", '"g0", "g1" or 0, 1', -100, language_group)
TOKEN_TAGS = (LANGUAGE, GROUP)


def join_with_tags(call: Call) -> None:
    """Stand in for `DatasetAttr.join(attr)`."""
    call.host()
    entry = call.arguments["attr"]
    for tag in TOKEN_TAGS:
        if tag.key in entry:
            setattr(call.instance, tag.key, entry[tag.key])


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
    file, now = folder / TAGS_FILE, _numbers(data_args)
    saved = read_json_object(file, f"remove {folder} to tokenise again") if file.exists() else {}
    remedy = "remove the folder or name another one to tokenise again"
    missing = [tag.argument for tag in asked_tags(data_args) if tag.name not in saved]
    if missing:
        raise UserError(f"tokenized_path: {folder} was tokenised without {' and '.join(missing)}: {remedy}")
    for name, numbers in now.items():
        if saved[name] != numbers:
            raise UserError(
                f"tokenized_path: {folder} was tokenised with {name} {saved[name]}, not {numbers}: {remedy}"
            )


def _numbers(data_args: MoeDataArguments) -> dict[str, dict[str, int]]:
    """Model input of each tag asked for -> number of each data set."""
    return {tag.name: tag.of_datasets(all_datasets(data_args), data_args) for tag in asked_tags(data_args)}


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
    names = all_datasets(data_args)
    is_old = LANGUAGE.of_datasets(names, data_args)
    if finetuning_args.lpr_loss_coef and not any(is_old[name] for name in training):
        raise UserError(
            f"lpr_loss_coef has nothing to act on: none of the data sets {', '.join(training)} is in an old language; "
            'add one with "language": "old" in dataset_info.json, or name its code in original_languages'
        )
    tags = {name: str(tag) for name, tag in LANGUAGE.tags_of(names, data_args).items()}
    languages = data_args.old_languages
    if languages is not None and not set(tags.values()) - set(TAGS):
        raise UserError(
            'original_languages has no effect: every data set is tagged "old" or "new", and none with a language code'
        )
    unused = [language for language in languages or [] if language not in tags.values()]
    warnings = [f"original_languages names {', '.join(unused)}, but no data set is tagged so"] if unused else []
    groups = []
    for word, number in (("old", 1), ("new", 0)):
        members = [name if tag in TAGS else f"{name} ({tag})" for name, tag in tags.items() if is_old[name] == number]
        groups.append(f"{word}: {', '.join(members) or 'none'}")
    return [f"Data sets by language: {'; '.join(groups)}"], warnings


def check_mixing(data_args: MoeDataArguments, finetuning_args: MoeFinetuningArguments, given: dict[str, Any]) -> None:
    """Refuse to train on one tag's tokens after the other's, which gives each batch to one side of the losses.

    Args:
        data_args: Data arguments.
        finetuning_args: Fine-tuning arguments.
        given: The arguments that the user gave.

    Raises:
        UserError: naming the argument that keeps data sets of several tags apart.
    """
    names = data_args.dataset or []
    apart = [tag for tag in asked_tags(data_args) if len(set(tag.of_datasets(names, data_args).values())) > 1]
    if not apart:
        return
    unread = [name for name, share in zip(names, data_args.interleave_probs or [], strict=False) if not share > 0]
    if unread:
        raise UserError(f"interleave_probs gives {unread[0]} no share: it would not be read; remove it from dataset")
    in_order = "disable_shuffling: true" if finetuning_args.disable_shuffling else None
    if given.get("train_sampling_strategy") == "sequential":
        in_order = "train_sampling_strategy: sequential"
    if data_args.streaming and is_tokenized(data_args):
        raise UserError(
            "streaming: true reads tokenized_path in the order in which it was written, one data set after the other: "
            "remove streaming"
        )
    in_order = "streaming: true" if data_args.streaming else in_order
    if in_order and data_args.mix_strategy == "concat":
        raise UserError(
            f"{in_order} reads {', '.join(names)} one after the other, so that a batch has tokens of one "
            f'"{apart[0].key}" alone: set mix_strategy: interleave_over (or interleave_under), and interleave_probs '
            "for their shares"
        )
