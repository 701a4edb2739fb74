"""Scores the experts of an extended model: average precision over the sentences that each saw (paper, equation 6)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.activations import pool_activations
from neuronmoe_plugins.neurons.arrays import IntArray, ScoreArray, Store
from neuronmoe_plugins.neurons.average_precision import average_precision, average_precision_torch
from neuronmoe_plugins.neurons.loading import default_device, load_model, require_places
from neuronmoe_plugins.neurons.metrics import Samples
from neuronmoe_plugins.neurons.options import SpecialiseOptions
from neuronmoe_plugins.neurons.places import find_mixtures
from neuronmoe_plugins.neurons.processes import Processes
from neuronmoe_plugins.neurons.scoring import read_finite
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from neuronmoe_plugins.progress import track
from neuronmoe_plugins.specialisation.mixtures import (
    ROUTING,
    language_routing,
    observing,
    places,
    projection_of,
)
from neuronmoe_plugins.specialisation.specialisation import ExpertScores, LanguageRouting, ScoreWriter, Specialisation

if TYPE_CHECKING:
    from neuronmoe_plugins.tuner import MoeLayer


def score_mixtures(
    options: SpecialiseOptions, sentences: TokenizedSentences, folder: Path, scores: Path, progress: bool
) -> Specialisation:
    """Score the experts of every mixture of a model.

    Args:
        options: What to load, where, and how to count.
        sentences: The sentences of all languages.
        folder: For activations that do not stay in memory.
        scores: The table of all neurons' scores to write.
        progress: Show progress bars on standard error.

    Raises:
        UserError: if the model or adapter cannot be loaded or has no mixture, or an activation is not finite.
    """
    device = options.device or default_device()
    model = load_model(options.model, options.dtype, device, options.adapter, needs_head=False)
    require_places(model, sentences.token_ids)
    mixtures = find_mixtures(model)
    units, processes = places(mixtures), Processes()
    store = pool_activations(
        model, sentences, observing(mixtures), units, options.analysis(), folder, processes, progress
    )
    experts, routing = score_experts(options, mixtures, store, sentences, scores, progress)
    settings = {
        **options.settings(),
        "model": options.model,
        "adapter": options.adapter,
        "model_type": model.config.model_type,
        "num_layers": model.config.get_text_config().num_hidden_layers,
        "languages": list(sentences.languages),
        "threshold": options.threshold,
        "missing": options.missing,
        "min_sentences": options.min_sentences,
        "dtype": options.dtype,
        "device": model.device.type,
    }
    return Specialisation(settings, experts, routing)


def score_experts(
    options: SpecialiseOptions,
    mixtures: Mapping[int, MoeLayer],
    store: Store,
    sentences: TokenizedSentences,
    path: Path,
    progress: bool,
) -> tuple[list[ExpertScores], list[LanguageRouting]]:
    samples = sentences.samples()
    assert samples is not None, "every sentence is of one corpus"
    experts: list[ExpertScores] = []
    routing: list[LanguageRouting] = []
    with ScoreWriter(path, sentences.languages) as writer:
        for layer in track(list(mixtures), "Scoring experts", progress):
            num_experts = len(mixtures[layer].expert_projections())
            values = store.read((layer, ROUTING)).cpu().numpy()
            wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
            if len(wrong):
                raise UserError(
                    f"layer {layer}: the router gives {sentences.names[int(wrong[0])]} no finite probabilities; use "
                    "--dtype float32 or leave that sentence out, or train the adapter anew"
                )
            routing += language_routing(layer, values, num_experts, samples.labels, list(sentences.languages))
            for expert in range(num_experts):
                names = mixtures[layer].family.projections
                seen = values[:, expert] > 0
                experts += _score_one(options, layer, expert, names, seen, store, sentences, samples, writer)
    return experts, routing


def _score_one(
    options: SpecialiseOptions,
    layer: int,
    expert: int,
    projections: tuple[str, ...],
    seen: NDArray[np.bool_],
    store: Store,
    sentences: TokenizedSentences,
    samples: Samples,
    writer: ScoreWriter,
) -> list[ExpertScores]:
    """Count one expert's neurons for every language."""
    labels, num_languages = samples.labels, samples.num_languages
    languages = measured_languages(seen, labels, num_languages, options.missing, options.min_sentences)
    neurons, high = 0, np.zeros(num_languages, dtype=np.int64)
    for projection in projections:
        pooled = read_finite(store, projection_of(layer, expert, projection), sentences.names, seen)
        scores = score_expert(pooled, seen, labels, languages, options.missing)
        writer.add(layer, expert, projection, scores)
        neurons += pooled.shape[1]
        for language, values in scores.items():
            high[language] += int((values >= options.threshold).sum())
    counts = np.bincount(labels[seen], minlength=num_languages)
    return [
        ExpertScores(
            layer,
            expert,
            language,
            neurons,
            int(high[index]) if index in languages else None,
            int(counts[index]),
            int(counts.sum() - counts[index]),
        )
        for index, language in enumerate(sentences.languages)
    ]


def measured_languages(
    seen: NDArray[np.bool_], labels: IntArray, num_languages: int, missing: str, min_sentences: int
) -> list[int]:
    """For which languages an expert is measured.

    Args:
        seen: Whether a sentence has a token at the expert, bool (sentences,).
        labels: Language index of every sentence, int64 (sentences,).
        num_languages: Number of languages.
        missing: `drop` or `zero`, see :func:`score_expert`.
        min_sentences: The language needs so many sentences with a token; so do the others together, where sentences
            without one are dropped.
    """
    counts = np.bincount(labels[seen], minlength=num_languages)
    others = counts.sum() - counts if missing == "drop" else np.bincount(labels, minlength=num_languages)
    enough = (counts >= min_sentences) & (others >= min_sentences)
    return [int(language) for language in np.flatnonzero(enough)]


def score_expert(
    pooled: Tensor, seen: NDArray[np.bool_], labels: IntArray, languages: list[int], missing: str
) -> dict[int, ScoreArray]:
    """Average precision of every unit for some languages.

    Args:
        pooled: Mean activations, float32 (sentences, units); what a sentence without a token has does not count.
        seen: Whether a sentence has a token at the expert, bool (sentences,).
        labels: Language index of every sentence, int64 (sentences,).
        languages: Which to score.
        missing: What a sentence without a token is: left out (`drop`), or one with the activation 0 (`zero`).

    Returns:
        Language index -> float64 (units,).
    """
    if not languages:
        return {}
    rows = torch.from_numpy(seen).to(pooled.device)
    values = pooled[rows] if missing == "drop" else torch.where(rows.unsqueeze(1), pooled, 0.0)
    own_labels = labels[seen] if missing == "drop" else labels
    present, compact = np.unique(own_labels, return_inverse=True)
    if values.is_cuda:
        on_device = torch.from_numpy(compact).to(values.device)
        scores: ScoreArray = average_precision_torch(values, on_device, len(present)).cpu().numpy()
    else:
        scores = average_precision(values.numpy(), compact, len(present))
    return {language: scores[int(np.searchsorted(present, language))] for language in languages}
