"""From a model and one corpus per language to its language-specific neurons: `neuronmoe analyze`."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuronmoe_plugins import plugins
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_json
from neuronmoe_plugins.neurons import summary
from neuronmoe_plugins.neurons.corpora import Corpus, CorpusSpec, sample_corpus
from neuronmoe_plugins.neurons.figure import save_layer_figure
from neuronmoe_plugins.neurons.loading import DTYPES, default_device, load_model, require_positions, tokenize
from neuronmoe_plugins.neurons.metrics import require_finite
from neuronmoe_plugins.neurons.table import Neuron, select_neurons, write_neurons

if TYPE_CHECKING:
    from neuronmoe_plugins.neurons.arrays import FloatArray, ModuleKey, ScoreArray
    from neuronmoe_plugins.neurons.metrics import Metric

# The summary comes last: with it, the analysis is complete.
OUTPUT_FILES = ("neurons.parquet", "neurons.png", "summary.json")


@dataclass(frozen=True)
class AnalyzeOptions:
    """What `neuronmoe analyze` is told."""

    model: str
    corpora: Sequence[CorpusSpec]
    output: Path
    samples: int = 500
    """Sentences per language."""
    top_n: int = 1000
    """At most so many neurons per language."""
    min_score: float = 0.5
    """Only neurons that score above this."""
    max_tokens: int = 256
    """Longer sentences are cut."""
    batch_size: int = 16
    seed: int = 42
    metric: str = "ap"
    dtype: str = "float32"
    device: str | None = None
    """A torch device; without one, the GPU if there is one."""

    def __post_init__(self) -> None:
        for name in ("samples", "top_n", "max_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        if not math.isfinite(self.min_score):
            raise UserError(f"--min-score is {self.min_score}; it must be a number")
        if self.dtype not in DTYPES:
            raise UserError(f"unknown --dtype {self.dtype!r}; there are: {', '.join(DTYPES)}")
        if self.output.exists() and not self.output.is_dir():
            raise UserError(f"--output {self.output} is a file; name a folder")


@dataclass(frozen=True)
class Analysis:
    """What came out: the neurons, and the content of `summary.json`."""

    neurons: list[Neuron]
    summary: dict[str, Any]

    def neurons_per_language(self) -> dict[str, int]:
        """How many neurons each language has in all."""
        return dict(self.summary["neurons_per_language"])


def analyze(options: AnalyzeOptions, progress: bool = False) -> Analysis:
    """Find the neurons specific to each corpus's language and write them to `options.output`.

    Writes `neurons.parquet`, `neurons.png` and `summary.json`; an earlier analysis there is replaced only once the new
    one is complete. Raises `UserError` for bad input, before anything is written.
    """
    metric = plugins.choose("metric", options.metric, plugins.metrics())
    corpora = [sample_corpus(spec, options.samples, options.seed) for spec in options.corpora]
    # Here, and not above, so that bad input is answered before torch has been imported.
    from neuronmoe_plugins.neurons.activations import pool_activations

    with _staging_folder(options.output) as staging:
        device = options.device or default_device()
        model, tokenizer = load_model(options.model, options.dtype, device)
        tokenized = [tokenize(tokenizer, corpus, options.max_tokens) for corpus in corpora]
        token_ids = [ids for sentences, _ in tokenized for ids in sentences]
        require_positions(model, token_ids)
        pooled = pool_activations(
            model,
            token_ids,
            batch_size=options.batch_size,
            padding_side="left" if tokenizer.padding_side == "left" else "right",
            folder=staging,
            progress=progress,
        )
        scores = _score_modules(pooled, corpora, metric)
        languages = [corpus.language for corpus in corpora]
        neurons = select_neurons(scores, languages, options.top_n, options.min_score)
        record = summary.build(options, model, device, corpora, [cut for _, cut in tokenized], scores, neurons)
        _write_outputs(staging, options, neurons, record)
        _publish(staging, options.output)
    return Analysis(neurons, record)


def _score_modules(
    pooled: dict[ModuleKey, FloatArray], corpora: Sequence[Corpus], metric: Metric
) -> dict[ModuleKey, ScoreArray]:
    """Scores of every module, float64 (languages, units), one module in memory at a time."""
    labels = np.repeat(np.arange(len(corpora)), [len(corpus.sentences) for corpus in corpora])
    names = [name for corpus in corpora for name in corpus.names()]
    scores: dict[ModuleKey, ScoreArray] = {}
    for key, mapped in pooled.items():
        values = np.array(mapped)
        require_finite(f"layer {key[0]} {key[1]}", values, names)
        scores[key] = metric(values, labels, len(corpora))
    return scores


def _write_outputs(staging: Path, options: AnalyzeOptions, neurons: list[Neuron], record: dict[str, Any]) -> None:
    write_neurons(staging / "neurons.parquet", neurons)
    title = f"{Path(options.model).name}: neurons above {options.min_score:g} ({options.metric})"
    save_layer_figure(staging / "neurons.png", record["layer_counts"], title)
    write_json(staging / "summary.json", record)


@contextmanager
def _staging_folder(output: Path) -> Iterator[Path]:
    """A folder next to `output` for activations and unfinished files, removed at the end."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error
    with staging as folder:
        yield Path(folder)


def _publish(staging: Path, output: Path) -> None:
    try:
        output.mkdir(exist_ok=True)
        for name in OUTPUT_FILES:
            (staging / name).replace(output / name)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error
