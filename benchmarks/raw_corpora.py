"""Made-up raw corpora as Greek web text looks on disk, and a tokenizer that was trained on such text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # every worker process imports the module that uses this one
    from transformers import PreTrainedTokenizerFast

SYLLABLES = [
    consonant + vowel
    for consonant in ("", *"βγδζθκλμνξπρστφχψ", "μπ", "ντ", "στ", "τρ", "πρ", "κτ")
    for vowel in (*"αεηιουωάέήίόύώ", "ου", "ει", "αι", "ες", "ος", "ων", "ης")
]
WORDS = 60_000
ZIPF = 1.05
"""Exponent of the words' frequencies."""
SENTENCE_WORDS = 17
POOL_WORDS = 1 << 20


@dataclass(frozen=True)
class Kind:
    """Documents of one kind.

    Attributes:
        name: What they are called.
        words: Median words of a document; a word and the blank after it are about 13 bytes.
        spread: Standard deviation of the logarithm of a document's words.
    """

    name: str
    words: int
    spread: float


LONG = Kind("documents of 3 kB", 185, 0.9)
SHORT = Kind("documents of 200 B", 13, 0.5)


class Writer:
    """Writes different documents of random words, the same for the same seed.

    Args:
        seed: Of words, lengths and sentences.
    """

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        lengths = self._generator.choice([1, 2, 3, 4, 5], WORDS, p=[0.06, 0.3, 0.34, 0.2, 0.1])
        chosen = self._generator.integers(len(SYLLABLES), size=(WORDS, 5))
        words = ["".join(SYLLABLES[s] for s in row[:n]) for row, n in zip(chosen, lengths, strict=True)]
        weights = 1 / np.arange(1, WORDS + 1) ** ZIPF
        ids = self._generator.choice(WORDS, POOL_WORDS, p=weights / weights.sum())
        ends = self._generator.random(POOL_WORDS) < 1 / SENTENCE_WORDS
        self._pool = [words[one] + ("." if end else "") for one, end in zip(ids.tolist(), ends.tolist(), strict=True)]

    def texts(self, kind: Kind) -> Iterator[str]:
        """Documents without end; each is a passage of the pool with a number in front, so that no two are equal."""
        number = 0
        while True:
            lengths = self._lengths(kind)
            starts = self._generator.integers(POOL_WORDS - lengths.max(), size=len(lengths))
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
                yield f"{number} {' '.join(self._pool[start : start + length])}"
                number += 1

    def _lengths(self, kind: Kind) -> NDArray[np.int64]:
        """Words of the next 1,000 documents."""
        return (kind.words * np.exp(kind.spread * self._generator.standard_normal(1000))).astype(np.int64) + 3

    def write(self, folder: Path, kind: Kind, size: int, files: int = 1) -> list[Path]:
        """Write records of the fields of CulturaX.

        Args:
            folder: For `part-N.jsonl`.
            kind: Of the documents.
            size: Bytes of all files, about.
            files: How many.
        """
        folder.mkdir(parents=True)
        paths, texts = [folder / f"part-{number:03}.jsonl" for number in range(files)], self.texts(kind)
        for part, path in enumerate(paths):
            written = 0
            with path.open("wb") as file:
                while written < size / files:
                    written += file.write(_record(next(texts), part, written))
        return paths


def _record(text: str, part: int, place: int) -> bytes:
    record = {
        "text": text,
        "timestamp": "2021/04/17 09:42:31",
        "url": f"https://www.example.gr/archive/{part}/{place}/index.html",
        "source": "mC4",
    }
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def train_tokenizer(texts: Iterator[str], vocabulary: int, folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, split by words as GPT-2's; trained on the texts and saved in the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return fast
