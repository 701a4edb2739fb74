"""What `neuronmoe analyze` is told, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronmoe_plugins.corpora import CorpusSpec
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.components import COMPONENTS
from neuronmoe_plugins.neurons.metrics import NeuronMetric

DTYPES = ("float32", "bfloat16", "float16")
CHOICES = {
    "dtype": DTYPES,
    "pooling": ("mean", "max"),
    "neuron_identity": ("module", "unit"),
}


@dataclass(frozen=True)
class AnalyzeOptions:
    """The options; None leaves the choice to the metric."""

    model: str
    output: Path
    corpora: Sequence[CorpusSpec] = ()
    """One per language."""
    concepts: Path | None = None
    """Instead: a folder of the published code's sentences, with the negative samples of each language."""
    adapter: str | None = None
    """A PEFT adapter of the model, a mixture of experts among others."""
    samples: int | None = None
    """Sentences per language, 500 unless given."""
    top_n: int | None = None
    """At most so many neurons per language."""
    min_score: float | None = None
    """Only neurons that score above this."""
    max_tokens: int = 256
    """Longer sentences are cut."""
    batch_size: int = 16
    seed: int | None = None
    """Of the sampling, 42 unless given."""
    text_field: str | None = None
    """Field or column of the texts, `text` unless given."""
    split_sentences: bool = False
    """Whether a text is split into sentences."""
    metric: str = "ap"
    components: Sequence[str] | None = None
    """Parts of a decoder layer whose projections are measured: attention, mlp or both."""
    pooling: str | None = None
    """Over a sentence's tokens: mean or max."""
    neuron_identity: str = "module"
    """What tells the neurons of a layer apart when they are counted."""
    dtype: str = "float32"
    device: str | None = None
    """A torch device, or `auto` to spread the model over all; without one, the GPU if there is one."""
    memory_limit: float | None = None
    """Gigabytes of pooled activations that may stay in the model's memory; more go to a file."""

    def __post_init__(self) -> None:
        for name in ("samples", "top_n", "max_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{_option(name)} is {value}; it must be at least 1")
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise UserError(f"--min-score is {self.min_score}; it must be a number")
        if self.memory_limit is not None and not self.memory_limit >= 0:
            raise UserError(f"--memory-limit is {self.memory_limit}; it must be a number of gigabytes, 0 or more")
        for name, choices in CHOICES.items():
            _require_choice(name, getattr(self, name), choices)
        for component in self.components or ():
            _require_choice("components", component, COMPONENTS)
        self._require_one_source()
        if self.output.exists() and not self.output.is_dir():
            raise UserError(f"--output {self.output} is a file; name a folder")

    def _require_one_source(self) -> None:
        if self.concepts is None:
            if not self.corpora:
                raise UserError(
                    "nothing to analyse: pass --corpus LANGUAGE=SOURCE for each language, --data DIR or --concepts DIR"
                )
            return
        for name in ("corpora", "samples", "seed", "text_field", "split_sentences"):
            if getattr(self, name) not in ((), None, False):
                option = "--corpus" if name == "corpora" else _option(name)
                raise UserError(f"{option} has no effect with --concepts, whose sentences are used as they are")

    def sampling(self) -> dict[str, Any]:
        """How corpora are sampled: the keywords of `sample_corpus`."""
        return {
            "samples": 500 if self.samples is None else self.samples,
            "seed": 42 if self.seed is None else self.seed,
            "text_field": self.text_field or "text",
            "split_sentences": self.split_sentences,
        }

    def resolved(self, metric: NeuronMetric) -> dict[str, Any]:
        """The options on which the neurons depend, with the metric's defaults; JSON values.

        Raises:
            UserError: for an option that has no effect with this metric.
        """
        observes_projections = metric.observes == "projections"
        for name in ("components", "pooling"):
            if getattr(self, name) is not None and not observes_projections:
                raise UserError(f"{_option(name)} has no effect with --metric {self.metric}; leave it out")
        return {
            **(self.sampling() if self.concepts is None else {"concepts": str(self.concepts)}),
            "top_n": metric.top_n if self.top_n is None else self.top_n,
            "min_score": metric.min_score if self.min_score is None else self.min_score,
            "max_tokens": self.max_tokens,
            "batch_size": self.batch_size,
            "metric": self.metric,
            "observes": metric.observes,
            "components": sorted(set(self.components or COMPONENTS)) if observes_projections else ["mlp"],
            "pooling": (self.pooling or "mean") if observes_projections else "active tokens",
            "neuron_identity": self.neuron_identity,
        }


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        raise UserError(f"unknown {_option(name)} {value!r}; there are: {', '.join(choices)}")
