"""Scores of every unit for every language, one module at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.arena import Arena
from neuronmoe_plugins.neurons.arrays import ModuleKey, ScoreArray
from neuronmoe_plugins.neurons.metrics import NeuronMetric, Samples, require_finite
from neuronmoe_plugins.neurons.processes import Processes
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from neuronmoe_plugins.neurons.store import Store

Scorer: TypeAlias = Callable[[Tensor], ScoreArray]


def score_modules(
    score: Scorer,
    units: Mapping[ModuleKey, int],
    store: Store,
    sentences: TokenizedSentences,
    folder: Path,
    processes: Processes,
    progress: bool,
) -> dict[ModuleKey, ScoreArray]:
    """Score all units.

    Args:
        score: What `make_scorer` gives.
        units: Number of units of each module that is scored.
        store: Holds the modules' pooled activations.
        sentences: What they are the activations of.
        folder: Where the processes put their scores together.
        processes: Each scores its share of the modules.
        progress: Show a progress bar on standard error.

    Returns:
        For every module float64 (languages, units), in all processes.

    Raises:
        UserError: for a NaN or infinite activation, or a plugin's metric that returns something else.
    """
    shapes = {key: (len(sentences.languages), size) for key, size in units.items()}
    arena = processes.first_first(lambda: Arena(folder / "scores.f64", shapes, np.float64))
    mine = processes.share(list(units))
    for key in track(mine, "Scoring neurons", console=Console(stderr=True), disable=not progress):
        pooled = store.read(key)
        if not torch.isfinite(pooled).all():
            require_finite(f"layer {key[0]} {key[1]}", pooled.cpu().numpy(), sentences.names)
        arena[key][:] = score(pooled)
    processes.wait_for_all()
    return {key: np.array(scores) for key, scores in arena.items()}


def make_scorer(name: str, metric: NeuronMetric, sentences: TokenizedSentences, device: torch.device) -> Scorer:
    """From a module's pooled activations (sentences, units) to its scores, all languages at once or one by one.

    Args:
        name: The metric's name, for errors.
        metric: The metric.
        sentences: What is compared.
        device: Where to score; the same for all modules and processes, because devices round differently.
    """
    samples = sentences.samples()
    if samples is not None:
        return lambda pooled: _score(name, metric, pooled.to(device), samples)
    own_samples = [sentences.samples_of(language) for language in range(len(sentences.languages))]

    def one_by_one(pooled: Tensor) -> ScoreArray:
        chosen = ((pooled[torch.from_numpy(rows).to(pooled.device)].to(device), own) for rows, own in own_samples)
        return np.stack([_score(name, metric, values, own)[1] for values, own in chosen])

    return one_by_one


def _score(name: str, metric: NeuronMetric, pooled: Tensor, samples: Samples) -> ScoreArray:
    if metric.score_tensor is None or not pooled.is_cuda:
        scores = np.asarray(metric.score(pooled.cpu().numpy(), samples))
    else:
        labels = torch.from_numpy(samples.labels).to(pooled.device)
        scores = metric.score_tensor(pooled, labels, samples.num_languages).cpu().numpy()
    expected = (samples.num_languages, pooled.shape[1])
    if scores.shape != expected or not np.isfinite(scores).all():
        kind = "numbers that are not finite" if scores.shape == expected else f"scores of shape {scores.shape}"
        raise UserError(f"--metric {name} gives {kind}; it must give {expected} finite numbers, a row per language")
    return scores
