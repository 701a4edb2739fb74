"""Scores of every unit for every language, one module at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from neuronmoe_plugins.neurons.arena import Arena
from neuronmoe_plugins.neurons.arrays import ModuleKey, ScoreArray
from neuronmoe_plugins.neurons.metrics import NeuronMetric, Samples, require_finite
from neuronmoe_plugins.neurons.processes import Processes
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from neuronmoe_plugins.neurons.store import Store


def score_modules(
    metric: NeuronMetric,
    units: Mapping[ModuleKey, int],
    store: Store,
    sentences: TokenizedSentences,
    folder: Path,
    processes: Processes,
    progress: bool,
) -> dict[ModuleKey, ScoreArray]:
    """Score all units.

    Args:
        metric: The metric.
        units: Number of units of each module that is scored.
        store: Holds the modules' pooled activations.
        sentences: What they are the activations of.
        folder: Where the processes put their scores together.
        processes: Each scores its share of the modules.
        progress: Show a progress bar on standard error.

    Returns:
        For every module float64 (languages, units), in all processes.

    Raises:
        UserError: for a NaN or infinite activation.
    """
    num_languages = len(sentences.languages)
    arena = processes.first_first(
        lambda: Arena(
            folder / "scores.f64", {key: (num_languages, size) for key, size in units.items()}, dtype=np.float64
        )
    )
    mine = processes.share(list(units))
    score = _scorer(metric, sentences)
    for key in track(mine, "Scoring neurons", console=Console(stderr=True), disable=not progress):
        pooled = store.read(key)
        if not torch.isfinite(pooled).all():
            require_finite(f"layer {key[0]} {key[1]}", pooled.cpu().numpy(), sentences.names)
        arena[key][:] = score(pooled)
    processes.wait_for_all()
    return {key: np.array(scores) for key, scores in arena.items()}


def _scorer(metric: NeuronMetric, sentences: TokenizedSentences) -> Callable[[Tensor], ScoreArray]:
    """From a module's pooled activations (sentences, units) to its scores, all languages at once or one by one."""
    samples = sentences.samples()
    if samples is not None:
        return lambda pooled: _score(metric, pooled, samples)
    own_samples = [sentences.samples_of(language) for language in range(len(sentences.languages))]

    def one_by_one(pooled: Tensor) -> ScoreArray:
        chosen = ((pooled[torch.from_numpy(rows).to(pooled.device)], own) for rows, own in own_samples)
        return np.stack([_score(metric, values, own)[1] for values, own in chosen])

    return one_by_one


def _score(metric: NeuronMetric, pooled: Tensor, samples: Samples) -> ScoreArray:
    if metric.score_tensor is None or not pooled.is_cuda:
        return metric.score(pooled.cpu().numpy(), samples)
    labels = torch.from_numpy(samples.labels).to(pooled.device)
    scores: ScoreArray = metric.score_tensor(pooled, labels, samples.num_languages).cpu().numpy()
    return scores
