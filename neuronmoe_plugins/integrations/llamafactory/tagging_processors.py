"""LLaMA-Factory's processors of texts and conversations, each token with its text's tags beside it.

Classes of their own and no wrapped methods: `datasets` pickles a processor for its cache and its workers.
"""

from __future__ import annotations

from collections import defaultdict
from copy import copy
from dataclasses import dataclass
from typing import Any

from llamafactory.data.processor import (
    PackedSupervisedDatasetProcessor,
    PretrainDatasetProcessor,
    SupervisedDatasetProcessor,
)

from neuronmoe_plugins.integrations.llamafactory.tags import asked_tags

Columns = dict[str, list[Any]]

# Above all token ids: a token of the n-th conversation (from 1) is packed as its id plus n times this.
CONVERSATION = 2**32


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


@dataclass
class TaggingPackedSupervisedDatasetProcessor(PackedSupervisedDatasetProcessor):
    """Packs conversations, also for `neat_packing`, each token with its conversation's tags.

    The host packs by length, in an order of its own. Token ids therefore carry the conversation that they come from
    while they are packed, and lose it afterwards; only the padding that the host adds carries none.
    """

    def preprocess_dataset(self, examples: Columns) -> Columns:
        """As the host's, with a number per token more for each tag; padding has the tag's own."""
        prompts = [_NumberedPrompt(prompt, number) for number, prompt in enumerate(examples["_prompt"], start=1)]
        packed = super().preprocess_dataset({**examples, "_prompt": prompts})
        text_tags = {tag: examples[tag.column] for tag in asked_tags(self.data_args)}
        for index, tokens in enumerate(packed["input_ids"]):
            sources, token_ids = zip(*(divmod(token, CONVERSATION) for token in tokens), strict=True)
            packed["input_ids"][index] = list(token_ids)
            for tag, numbers in text_tags.items():
                by_source = [tag.padding, *numbers]
                packed[tag.name].append([by_source[source] for source in sources])
        return packed

    def _encode_data_example(self, prompt: Any, *args: Any, **kwargs: Any) -> tuple[list[int], list[int]]:
        token_ids, labels = super()._encode_data_example(prompt, *args, **kwargs)
        return [token_id + prompt.number * CONVERSATION for token_id in token_ids], labels


class _NumberedPrompt(list[dict[str, str]]):
    """The messages of a prompt, and which of its batch it is, from 1."""

    def __init__(self, messages: list[dict[str, str]], number: int) -> None:
        super().__init__(messages)
        self.number = number


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
    PackedSupervisedDatasetProcessor: TaggingPackedSupervisedDatasetProcessor,
}


def _text_tags(examples: Columns, data_args: Any) -> Columns:
    """Model input -> number of each text."""
    return {tag.name: examples[tag.column] for tag in asked_tags(data_args)}


def _token_tags(text_tags: Columns, input_ids: list[list[int]]) -> Columns:
    """Model input -> for each text, its number for every token."""
    return {
        name: [[number] * len(token_ids) for number, token_ids in zip(numbers, input_ids, strict=True)]
        for name, numbers in text_tags.items()
    }
