"""The tokenised sentences of an analysis, which its processes share through a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.corpora.samples import POSITIVE, SampleSet
from neuronmoe_plugins.files import write_json
from neuronmoe_plugins.neurons.arrays import IntArray
from neuronmoe_plugins.neurons.batches import PaddingSide
from neuronmoe_plugins.neurons.metrics import Samples


@dataclass(frozen=True)
class TokenizedSentences:
    """Sentences of all languages.

    Attributes:
        languages: Names of the languages.
        membership: For every language what each sentence is to it: 1 a positive sample, 0 a negative one, -1 none.
        names: Where each sentence is from, for messages.
        token_ids: Token ids of each sentence.
        padding_side: Where the tokenizer pads.
    """

    languages: Sequence[str]
    membership: Sequence[Sequence[int]]
    names: Sequence[str]
    token_ids: Sequence[Sequence[int]]
    padding_side: PaddingSide

    def tokens(self) -> IntArray:
        """Tokens of every sentence, int64 (sentences,)."""
        return np.array([len(ids) for ids in self.token_ids], dtype=np.int64)

    def positives(self) -> NDArray[np.bool_]:
        """Which sentences are a language's own, bool (languages, sentences)."""
        return np.array(self.membership) == POSITIVE

    def samples(self) -> Samples | None:
        """All sentences with their languages, if each is of one language and a negative sample of all others."""
        labels = self._sample_set().labels()
        return None if labels is None else Samples(labels, len(self.languages), self.tokens())

    def samples_of(self, language: int) -> tuple[IntArray, Samples]:
        """The sentences that one language uses: their indices, and as samples of 0, the others, and 1, the language."""
        rows, own = self._sample_set().used_by(language)
        return rows, Samples(own.astype(np.int64), 2, self.tokens()[rows])

    def _sample_set(self) -> SampleSet:
        membership = np.array(self.membership, dtype=np.int8)
        return SampleSet(tuple(self.languages), (), tuple(self.names), membership)

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> TokenizedSentences:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
