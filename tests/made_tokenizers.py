"""Tokenizers that do not know all of a text, and a real small one that does."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def word_tokenizer(words: Sequence[str]) -> Any:
    """A token per word, `<unk>` for all but these."""
    from tokenizers import models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    return fast_tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"), pre_tokenizers.Whitespace())


def trained_tokenizer(texts: Sequence[str], size: int, **more: Any) -> Any:
    """A byte-level BPE trained on texts, with special tokens in its vocabulary and one that is added behind it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    for name, value in more.items():
        setattr(tokenizer.model, name, value)
    made = fast_tokenizer(tokenizer.model, tokenizer.pre_tokenizer, decoder=decoders.ByteLevel())
    made.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    return made


def fast_tokenizer(model: Any, pre_tokenizer: Any = None, normalizer: Any = None, decoder: Any = None) -> Any:
    """One of transformers from the parts of one of `tokenizers`."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(model)
    for name, part in (("pre_tokenizer", pre_tokenizer), ("normalizer", normalizer), ("decoder", decoder)):
        if part is not None:
            setattr(tokenizer, name, part)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    known = {name: token for name, token in special.items() if tokenizer.token_to_id(token) is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **known
    )


def with_tokenizer(model: Path, folder: Path, tokenizer: Any = None) -> Path:
    """A copy of a model's folder with another tokenizer, or with none."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*token*"))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder
