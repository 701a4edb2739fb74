"""From the tags of a data set to one number per token each, along every path of LLaMA-Factory's data to the model."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.llamafactory.data_sets import is_tokenized, nothing_left
from neuronmoe_plugins.integrations.llamafactory.dataset_fits import DatasetFits
from neuronmoe_plugins.integrations.llamafactory.tags import (
    TOKEN_TAGS,
    TokenTag,
    asked_tags,
    check_saved_tags,
    save_tags,
)
from neuronmoe_plugins.integrations.stand_ins import Call


@dataclass
class TokenTagCollator:
    """Pads the tags beside whatever the host's collator pads.

    Args:
        collator: The host's collator; its tokenizer says on which side it pads.
    """

    collator: Any

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate; adds the model input of each tag that the features have, (batch, sequence) int64.

        Raises:
            UserError: if some of the features have a tag and others have not.
        """
        tags = [tag for tag in TOKEN_TAGS if any(tag.name in row for row in features)]
        for tag in tags:
            if any(tag.name not in row for row in features):
                raise UserError(f"{tag.argument}: some of the data has no {tag.name}: tokenise all of it with tags")
        numbers = {tag: [row[tag.name] for row in features] for tag in tags}
        masks = [row["attention_mask"] for row in features]
        names = {tag.name for tag in tags}
        batch = self.collator([{key: row[key] for key in row if key not in names} for row in features])
        for tag, rows in numbers.items():
            batch[tag.name] = self._pad(_as_trimmed(rows, masks, batch), tag, batch["input_ids"])
        return batch

    def _pad(self, rows: list[list[int]], tag: TokenTag, input_ids: torch.Tensor) -> torch.Tensor:
        padded = torch.full_like(input_ids, tag.padding, dtype=torch.long)
        for target, values in zip(padded, rows, strict=True):
            start = len(target) - len(values) if self.collator.tokenizer.padding_side == "left" else 0
            target[start : start + len(values)] = torch.as_tensor(values)
        return padded


def _as_trimmed(rows: list[list[int]], masks: list[list[int]], batch: dict[str, Any]) -> list[list[int]]:
    """Drop what the host drops from packed sequences for FlashAttention: the padding, and the mask that tells it."""
    if batch.get("attention_mask") is not None or batch["input_ids"].shape[1] >= max(map(len, rows)):
        return rows
    return [
        [value for value, is_real in zip(row, mask, strict=True) if is_real]
        for row, mask in zip(rows, masks, strict=True)
    ]


def load_with_tags(call: Call) -> Any:
    """Stand in for `_load_single_dataset`: write the data set's tags beside each of its examples."""
    bound = call.arguments
    attributes, data_args = bound["dataset_attr"], bound["data_args"]
    numbers = {tag.column: tag.read(getattr(attributes, tag.key, None), data_args) for tag in asked_tags(data_args)}
    changed = {}
    if getattr(data_args, "of_moe", False) and not bound["training_args"].dataloader_num_workers:
        # The host splits a file that it streams into as many parts as there are workers: into none.
        changed["training_args"] = copy(bound["training_args"])
        changed["training_args"].dataloader_num_workers = 1
    dataset = call.host(**changed)
    if getattr(data_args, "fits", None) is not None:
        data_args.fits.measure(str(attributes), dataset)
    if numbers and isinstance(dataset, IterableDataset):
        return dataset.map(partial(_numbers_of_example, numbers=numbers))
    for column, number in numbers.items():
        dataset = dataset.add_column(column, np.full(len(dataset), number))
    return dataset


def _numbers_of_example(_example: dict[str, Any], numbers: dict[str, int]) -> dict[str, int]:
    return numbers


def tagging_processor(call: Call) -> Any:
    """Stand in for `_get_dataset_processor`: the counterpart that carries the tags."""
    # Not at the top: it imports the module that this one is a hook of.
    from neuronmoe_plugins.integrations.llamafactory.tagging_processors import TAGGING_PROCESSORS

    processor = call.host()
    asked = asked_tags(processor.data_args)
    # Prompts to generate from have no loss, and generation takes no tags.
    if not asked or call.arguments.get("do_generate"):
        return processor
    tagging = TAGGING_PROCESSORS.get(type(processor))
    if tagging is None:
        names = " and ".join(tag.argument for tag in asked)
        raise UserError(f"{names}: no token can be tagged by {type(processor).__name__}")
    return tagging(
        template=processor.template,
        tokenizer=processor.tokenizer,
        processor=processor.processor,
        data_args=processor.data_args,
    )


def get_dataset(call: Call) -> Any:
    """Stand in for `get_dataset`: keep the tags with tokenised data, and let no data through without its tags."""
    data_args, training_args = call.arguments["data_args"], call.arguments["training_args"]
    reloads = is_tokenized(data_args)
    check_saved_tags(data_args)
    of_moe = getattr(data_args, "of_moe", False)
    if of_moe:
        data_args.fits = DatasetFits(call.arguments["tokenizer"], call.arguments["model_args"].model_name_or_path)
    try:
        datasets = call.host()
    except (StopIteration, RuntimeError) as error:
        refused = nothing_left(error, data_args) if of_moe else None
        if refused is None:
            raise
        raise refused from error
    if of_moe and training_args.should_save:
        data_args.fits.save(Path(training_args.output_dir))
    if data_args.tokenized_path is not None and not reloads and training_args.should_save:
        save_tags(data_args)
    if reloads:
        datasets = {role: _only_asked_tags(dataset, data_args) for role, dataset in datasets.items()}
    roles = ["train_dataset"] if training_args.predict_with_generate else ["train_dataset", "eval_dataset"]
    for role in roles:
        for dataset in _each(datasets.get(role)):
            _check_columns(dataset, role, data_args)
    return datasets


def _only_asked_tags(dataset: Any, data_args: Any) -> Any:
    """Without the tags in a tokenised folder that this run does not ask for, which its collator may not know."""
    if isinstance(dataset, dict):
        return {name: _only_asked_tags(one, data_args) for name, one in dataset.items()}
    asked = {tag.name for tag in asked_tags(data_args)}
    surplus = [tag.name for tag in TOKEN_TAGS if tag.name in (dataset.column_names or []) and tag.name not in asked]
    return dataset.remove_columns(surplus) if surplus else dataset


def _check_columns(dataset: Any, role: str, data_args: Any) -> None:
    """Streams may not know their columns before they are read; the losses refuse batches without tags."""
    for tag in asked_tags(data_args):
        if dataset.column_names is not None and tag.name not in dataset.column_names:
            raise UserError(f"{tag.argument}: the {role} has no {tag.name} after it was tokenised")


def _each(dataset: Any) -> Iterator[Any]:
    """The data sets of an evaluation on each, or the one there is, if any."""
    if isinstance(dataset, dict):
        yield from dataset.values()
    elif dataset is not None:
        yield dataset
