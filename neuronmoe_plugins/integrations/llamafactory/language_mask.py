"""From the language of a data set to one 0 or 1 per token, through LLaMA-Factory's own tokenising and packing."""

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
from neuronmoe_plugins.integrations.llamafactory.language_tags import is_old_language

# The model input of neuronmoe_plugins.tuner, and the column that carries a text's language until it is tokenised.
MASK = "old_language_mask"
OLD_COLUMN = "_old_language"


def extend_data_loader(module: ModuleType) -> None:
    """Make `llamafactory.data.loader` produce the mask where `generate_lang_mask` asks for it."""
    wrapt.wrap_function_wrapper(module, "_load_single_dataset", _load_with_language)
    wrapt.wrap_function_wrapper(module, "_get_dataset_processor", _masking_processor)


@dataclass
class MaskedPretrainDatasetProcessor(PretrainDatasetProcessor):
    """Tokenises, concatenates and cuts texts of several languages, each token with its text's language."""

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """As the host's, with a list of 0 and 1 per token more; a text's EOS belongs to the text."""
        tagging = copy(self)
        tagging.tokenizer = _TaggingTokenizer(self.tokenizer, examples[OLD_COLUMN])
        return PretrainDatasetProcessor.preprocess_dataset(tagging, examples)


@dataclass
class MaskedSupervisedDatasetProcessor(SupervisedDatasetProcessor):
    """Encodes conversations one by one, each token of a conversation with its language."""

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """As the host's, with a list of 0 and 1 per token more."""
        rows: dict[str, list[Any]] = defaultdict(list)
        # One at a time: the host drops invalid examples without saying which.
        for index, is_old in enumerate(examples[OLD_COLUMN]):
            row = super().preprocess_dataset({key: values[index : index + 1] for key, values in examples.items()})
            for key, values in row.items():
                rows[key].extend(values)
            rows[MASK].extend([int(is_old)] * len(input_ids) for input_ids in row.get("input_ids", []))
        return rows


class _TaggingTokenizer:
    """A tokenizer whose encodings of a batch of texts have one key more, which the host packs like all the others."""

    def __init__(self, tokenizer: Any, is_old: list[bool]) -> None:
        self._tokenizer = tokenizer
        self._is_old = is_old

    def __call__(self, texts: list[str], **kwargs: Any) -> Any:
        encoding = self._tokenizer(texts, **kwargs)
        encoding[MASK] = [
            [int(is_old)] * len(input_ids)
            for is_old, input_ids in zip(self._is_old, encoding["input_ids"], strict=True)
        ]
        return encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


MASKED_PROCESSORS: dict[type, type] = {
    PretrainDatasetProcessor: MaskedPretrainDatasetProcessor,
    SupervisedDatasetProcessor: MaskedSupervisedDatasetProcessor,
}


@dataclass
class LanguageMaskCollator:
    """Pads the mask beside whatever the host's collator pads; padding is not old.

    Args:
        collator: The host's collator; its tokenizer says on which side it pads.
    """

    collator: Any

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate; adds `old_language_mask`, (batch, sequence) int64, if the features have it."""
        if MASK not in features[0]:
            return self.collator(features)
        batch = self.collator([{key: value for key, value in row.items() if key != MASK} for row in features])
        mask = torch.zeros_like(batch["input_ids"], dtype=torch.long)
        for row, feature in zip(mask, features, strict=True):
            values = torch.as_tensor(feature[MASK])
            if self.collator.tokenizer.padding_side == "left":
                row[len(row) - len(values) :] = values
            else:
                row[: len(values)] = values
        batch[MASK] = mask
        return batch


def _load_with_language(
    wrapped: Callable[..., Any], instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Stand in for `_load_single_dataset`: write the data set's language beside each of its examples."""
    dataset = wrapped(*args, **kwargs)
    bound = inspect.signature(wrapped).bind(*args, **kwargs).arguments
    data_args = bound["data_args"]
    if not getattr(data_args, "generate_lang_mask", False):
        return dataset
    is_old = is_old_language(getattr(bound["dataset_attr"], "language", None), data_args.old_languages)
    return dataset.add_column(OLD_COLUMN, np.full(len(dataset), is_old))


def _masking_processor(
    wrapped: Callable[..., Any], instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Stand in for `_get_dataset_processor`: the counterpart that makes the mask.

    A class of its own and no wrapped method: `datasets` pickles the processor for its cache and its workers.
    """
    processor = wrapped(*args, **kwargs)
    if not getattr(processor.data_args, "generate_lang_mask", False):
        return processor
    masked = MASKED_PROCESSORS.get(type(processor))
    if masked is None:
        raise UserError(f"generate_lang_mask: no language mask can be made by {type(processor).__name__}")
    return masked(
        template=processor.template,
        tokenizer=processor.tokenizer,
        processor=processor.processor,
        data_args=processor.data_args,
    )
