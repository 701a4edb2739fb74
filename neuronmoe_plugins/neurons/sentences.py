"""The tokenised sentences of an analysis, which its processes share through a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from neuronmoe_plugins.files import write_json
from neuronmoe_plugins.neurons.batches import PaddingSide
from neuronmoe_plugins.neurons.metrics import Samples


@dataclass(frozen=True)
class TokenizedSentences:
    """Sentences of all languages.

    Attributes:
        languages: Names of the languages.
        labels: Index of each sentence's language.
        names: Where each sentence is from, for messages.
        token_ids: Token ids of each sentence.
        padding_side: Where the tokenizer pads.
    """

    languages: Sequence[str]
    labels: Sequence[int]
    names: Sequence[str]
    token_ids: Sequence[Sequence[int]]
    padding_side: PaddingSide

    def samples(self) -> Samples:
        """What a metric is told about them."""
        tokens = np.array([len(ids) for ids in self.token_ids], dtype=np.int64)
        return Samples(np.array(self.labels, dtype=np.int64), len(self.languages), tokens)

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> TokenizedSentences:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
