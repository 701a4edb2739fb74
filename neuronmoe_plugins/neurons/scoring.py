"""Scores of every unit for every language, one module at a time."""

from __future__ import annotations

from collections.abc import Mapping
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
    for key in track(mine, "Scoring neurons", console=Console(stderr=True), disable=not progress):
        arena[key][:] = _score_module(metric, key, store.read(key), sentences)
    processes.wait_for_all()
    return {key: np.array(scores) for key, scores in arena.items()}


def _score_module(metric: NeuronMetric, key: ModuleKey, pooled: Tensor, sentences: TokenizedSentences) -> ScoreArray:
    if not torch.isfinite(pooled).all():
        require_finite(f"layer {key[0]} {key[1]}", pooled.cpu().numpy(), sentences.names)
    samples = sentences.samples()
    if samples is not None:
        return _score(metric, pooled, samples)
    scores = []
    for language in range(len(sentences.languages)):
        rows, own_samples = sentences.samples_of(language)
        scores.append(_score(metric, pooled[torch.from_numpy(rows).to(pooled.device)], own_samples)[1])
    return np.stack(scores)


def _score(metric: NeuronMetric, pooled: Tensor, samples: Samples) -> ScoreArray:
    if metric.score_tensor is None or not pooled.is_cuda:
        return metric.score(pooled.cpu().numpy(), samples)
    labels = torch.from_numpy(samples.labels).to(pooled.device)
    scores: ScoreArray = metric.score_tensor(pooled, labels, samples.num_languages).cpu().numpy()
    return scores
