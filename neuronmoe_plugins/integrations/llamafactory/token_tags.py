"""From the tags of a data set to one number per token each, through LLaMA-Factory's own tokenising and packing."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
import wrapt
from llamafactory.data.processor import PretrainDatasetProcessor, SupervisedDatasetProcessor

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.llamafactory.dataset_tags import TOKEN_TAGS, asked_tags

Columns = dict[str, list[Any]]


def extend_data_loader(module: ModuleType) -> None:
    """Make `llamafactory.data.loader` produce the columns of numbers that the data arguments ask for."""
    wrapt.wrap_function_wrapper(module, "_load_single_dataset", _load_with_tags)
    wrapt.wrap_function_wrapper(module, "_get_dataset_processor", _tagging_processor)


@dataclass
class TaggingPretrainDatasetProcessor(PretrainDatasetProcessor):
    """Tokenises, concatenates and cuts texts of several data sets, each token with its text's tags."""

    def preprocess_dataset(self, examples: Columns) -> Columns:
        """As the host's, with a number per token more for each tag; a text's EOS belongs to the text."""
        tagging = copy(self)
        tagging.tokenizer = _TaggingTokenizer(self.tokenizer, _text_tags(examples, self.data_args))
        return PretrainDatasetProcessor.preprocess_dataset(tagging, examples)


@dataclass
class TaggingSupervisedDatasetProcessor(SupervisedDatasetProcessor):
    """Encodes conversations one by one, each token of a conversation with its tags."""

    def preprocess_dataset(self, examples: Columns) -> Columns:
        """As the host's, with a number per token more for each tag."""
        rows: Columns = defaultdict(list)
        # One at a time: the host drops invalid examples without saying which.
        for index in range(len(examples["_prompt"])):
            example = {key: values[index : index + 1] for key, values in examples.items()}
            row = super().preprocess_dataset(example)
            if row:
                row |= _token_tags(_text_tags(example, self.data_args), row["input_ids"])
            for key, values in row.items():
                rows[key].extend(values)
        return rows


class _TaggingTokenizer:
    """A tokenizer whose encodings of a batch of texts have more keys, which the host packs like all the others."""

    def __init__(self, tokenizer: Any, text_tags: Columns) -> None:
        self._tokenizer = tokenizer
        self._text_tags = text_tags

    def __call__(self, texts: list[str], **kwargs: Any) -> Any:
        encoding = self._tokenizer(texts, **kwargs)
        encoding.update(_token_tags(self._text_tags, encoding["input_ids"]))
        return encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


TAGGING_PROCESSORS: dict[type, type] = {
    PretrainDatasetProcessor: TaggingPretrainDatasetProcessor,
    SupervisedDatasetProcessor: TaggingSupervisedDatasetProcessor,
}


@dataclass
class TokenTagCollator:
    """Pads the tags beside whatever the host's collator pads.

    Args:
        collator: The host's collator; its tokenizer says on which side it pads.
    """

    collator: Any

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate; adds the model input of each tag that the features have, (batch, sequence) int64."""
        tags = [tag for tag in TOKEN_TAGS if tag.name in features[0]]
        names = {tag.name for tag in tags}
        batch = self.collator([{key: row[key] for key in row if key not in names} for row in features])
        for tag in tags:
            padded = torch.full_like(batch["input_ids"], tag.padding, dtype=torch.long)
            for row, feature in zip(padded, features, strict=True):
                values = torch.as_tensor(feature[tag.name])
                if self.collator.tokenizer.padding_side == "left":
                    row[len(row) - len(values) :] = values
                else:
                    row[: len(values)] = values
            batch[tag.name] = padded
        return batch


def _text_tags(examples: Columns, data_args: Any) -> Columns:
    """Model input -> number of each text."""
    return {tag.name: examples[tag.column] for tag in asked_tags(data_args)}


def _token_tags(text_tags: Columns, input_ids: list[list[int]]) -> Columns:
    """Model input -> for each text, its number for every token."""
    return {
        name: [[number] * len(token_ids) for number, token_ids in zip(numbers, input_ids, strict=True)]
        for name, numbers in text_tags.items()
    }


def _load_with_tags(wrapped: Callable[..., Any], instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand in for `_load_single_dataset`: write the data set's tags beside each of its examples."""
    dataset = wrapped(*args, **kwargs)
    bound = inspect.signature(wrapped).bind(*args, **kwargs).arguments
    for tag in asked_tags(bound["data_args"]):
        number = tag.read(getattr(bound["dataset_attr"], tag.key, None), bound["data_args"])
        dataset = dataset.add_column(tag.column, np.full(len(dataset), number))
    return dataset


def _tagging_processor(
    wrapped: Callable[..., Any], instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Stand in for `_get_dataset_processor`: the counterpart that carries the tags.

    A class of its own and no wrapped method: `datasets` pickles the processor for its cache and its workers.
    """
    processor = wrapped(*args, **kwargs)
    asked = asked_tags(processor.data_args)
    if not asked:
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
