"""What `neuronmoe specialise` is told, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronmoe_plugins.corpora import CorpusSpec
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.options import AnalyzeOptions

MISSING = ("drop", "zero")


@dataclass(frozen=True)
class SpecialiseOptions:
    """The options, those of the corpora and the model as in `AnalyzeOptions`.

    Raises:
        UserError: for a value that cannot be used.
    """

    model: str
    adapter: str
    """The mixture: a folder or a name on the hub."""
    output: Path
    corpora: Sequence[CorpusSpec]
    """One per language, two or more."""
    threshold: float = 0.9
    """A neuron is specific to a language if its average precision is at least this (paper, section 6.1)."""
    missing: str = "drop"
    """What a sentence is to an expert that none of its tokens chose: left out (drop), or one of activation 0 (zero)."""
    min_sentences: int = 10
    """An expert is measured for a language only if so many of its sentences, and of others, have a token there."""
    samples: int | None = None
    max_tokens: int = 256
    batch_size: int = 16
    seed: int | None = None
    text_field: str | None = None
    split_sentences: bool = False
    dtype: str = "float32"
    device: str | None = None
    memory_limit: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UserError(f"--threshold is {self.threshold}; an average precision is above 0 and at most 1")
        if self.missing not in MISSING:
            raise UserError(f"unknown --missing {self.missing!r}; there are: {', '.join(MISSING)}")
        if self.min_sentences < 1:
            raise UserError(f"--min-sentences is {self.min_sentences}; it must be at least 1")
        if len(self.corpora) < 2:
            raise UserError(
                "pass --corpus LANGUAGE=SOURCE for two languages or more, or --data DIR: an expert is compared on them"
            )
        self.analysis()

    def analysis(self) -> AnalyzeOptions:
        """The same for an analysis, which reads the corpora and loads the model."""
        shared = ("model", "adapter", "output", "corpora", "samples", "max_tokens", "batch_size", "seed", "text_field")
        more = ("split_sentences", "dtype", "device", "memory_limit")
        return AnalyzeOptions(**{name: getattr(self, name) for name in (*shared, *more)})

    def settings(self) -> dict[str, Any]:
        """What the activations depend on; JSON values."""
        return {**self.analysis().sampling(), "max_tokens": self.max_tokens, "batch_size": self.batch_size}
