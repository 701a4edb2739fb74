"""`summary.json`: everything needed to repeat an analysis, and its counts per layer."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.table import Neuron, layer_counts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neuronmoe_plugins.neurons.analyze import AnalyzeOptions
    from neuronmoe_plugins.neurons.arrays import ModuleKey, ScoreArray
    from neuronmoe_plugins.neurons.corpora import Corpus

PACKAGES = ("neuronmoe-plugins", "torch", "transformers", "tokenizers", "numpy")
POOLING = "mean over the sentence's tokens, a BOS added by the tokenizer included"
NEURON_IDENTITY = "module_and_unit"


def build(
    options: AnalyzeOptions,
    model: PreTrainedModel,
    device: str,
    corpora: Sequence[Corpus],
    truncated: Sequence[int],
    scores: Mapping[ModuleKey, ScoreArray],
    neurons: Sequence[Neuron],
) -> dict[str, Any]:
    """The content of `summary.json`; `truncated` counts the cut sentences of each corpus."""
    languages = [corpus.language for corpus in corpora]
    num_layers = 1 + max(layer for layer, _ in scores)
    return {
        "model": options.model,
        "model_type": model.config.model_type,
        "model_commit": getattr(model.config, "_commit_hash", None),
        "dtype": options.dtype,
        "device": device,
        "languages": languages,
        "corpora": [_describe_corpus(corpus, cut) for corpus, cut in zip(corpora, truncated, strict=True)],
        "samples": options.samples,
        "top_n": options.top_n,
        "min_score": options.min_score,
        "max_tokens": options.max_tokens,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "metric": options.metric,
        "pooling": POOLING,
        "neuron_identity": NEURON_IDENTITY,
        "num_layers": num_layers,
        "units_per_module": _units_per_module(scores),
        "neurons_per_language": {name: sum(neuron.language == name for neuron in neurons) for name in languages},
        "layer_counts": {name: layer_counts(neurons, [name], num_layers) for name in languages},
        "pair_layer_counts": {
            "+".join(pair): layer_counts(neurons, pair, num_layers) for pair in combinations(languages, 2)
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _units_per_module(scores: Mapping[ModuleKey, ScoreArray]) -> dict[str, int | list[int]]:
    """Neurons of each module: one number, or one per layer where layers differ."""
    units: dict[str, list[int]] = {}
    for (_, module), module_scores in scores.items():
        units.setdefault(module, []).append(module_scores.shape[1])
    return {module: sizes[0] if len(set(sizes)) == 1 else sizes for module, sizes in units.items()}


def _describe_corpus(corpus: Corpus, truncated: int) -> dict[str, object]:
    return {
        "language": corpus.language,
        "path": str(corpus.path),
        "sha256": corpus.sha256,
        "available": corpus.available,
        "sampled": len(corpus.sentences),
        "truncated": truncated,
    }


def read(folder: Path) -> dict[str, Any]:
    """The summary of the analysis in `folder`; raises `UserError` if there is none or it lacks what others need."""
    path = folder / "summary.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no analysis (no summary.json); run `neuronmoe analyze` first") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run `neuronmoe analyze` again") from error
    if not isinstance(record, dict) or not {"languages", "num_layers"} <= record.keys():
        raise UserError(f"{path} is no summary of an analysis: 'languages' or 'num_layers' is missing")
    return record
