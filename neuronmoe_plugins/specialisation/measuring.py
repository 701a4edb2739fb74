"""Loads the extended model, runs it over the sentences and scores its experts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.activations import observe_sentences
from neuronmoe_plugins.neurons.arrays import FloatArray
from neuronmoe_plugins.neurons.loading import default_device, load_model, require_positions
from neuronmoe_plugins.neurons.measure import memory_limit, open_store, out_of_memory_is_an_error
from neuronmoe_plugins.neurons.metrics import require_finite
from neuronmoe_plugins.neurons.options import SpecialiseOptions
from neuronmoe_plugins.neurons.processes import Processes
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from neuronmoe_plugins.neurons.store import Store
from neuronmoe_plugins.specialisation.observing import ROUTING, expert_name, find_mixtures, observing, places
from neuronmoe_plugins.specialisation.results import ExpertScores, LanguageRouting, ScoreWriter, Specialisation
from neuronmoe_plugins.specialisation.routing import language_routing
from neuronmoe_plugins.specialisation.scoring import measured_languages, score_expert

if TYPE_CHECKING:
    from neuronmoe_plugins.neurons.metrics import Samples
    from neuronmoe_plugins.tuner import MoeLayer


def measure(
    options: SpecialiseOptions, sentences: TokenizedSentences, folder: Path, scores: Path, progress: bool
) -> Specialisation:
    """Measure every mixture of the model.

    Args:
        options: What to load, where, and how to count.
        sentences: The sentences of all languages.
        folder: For activations that do not stay in memory.
        scores: The table of all neurons' scores to write.
        progress: Show progress bars on standard error.

    Raises:
        UserError: if the model or adapter cannot be loaded or has no mixture, or an activation is not finite.
    """
    model = load_model(options.model, options.dtype, options.device or default_device(), options.adapter)
    require_positions(model, sentences.token_ids)
    mixtures = find_mixtures(model)
    processes, units = Processes(), places(mixtures)
    limit = memory_limit(options.memory_limit, model.device, processes)
    store = open_store(folder, units, len(sentences.token_ids), limit, processes)
    with out_of_memory_is_an_error(options.analysis()):
        observe_sentences(
            model,
            sentences.token_ids,
            observing(mixtures),
            store,
            options.batch_size,
            sentences.padding_side,
            processes,
            progress,
        )
    experts, routing = _score(options, mixtures, store, sentences, scores, progress)
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


def _score(
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
        for layer in track(list(mixtures), "Scoring experts", console=Console(stderr=True), disable=not progress):
            num_experts = len(mixtures[layer].expert_projections())
            values = store.read((layer, ROUTING)).cpu().numpy()
            _require_finite_routing(layer, values, sentences)
            routing += language_routing(layer, values, num_experts, samples.labels, list(sentences.languages))
            for expert in range(num_experts):
                names = mixtures[layer].family.projections
                seen = values[:, expert] > 0
                experts += _score_one(options, layer, expert, names, seen, store, sentences, samples, writer)
    return experts, routing


def _require_finite_routing(layer: int, values: FloatArray, sentences: TokenizedSentences) -> None:
    """Raise `UserError` naming the first sentence whose router logits are not finite."""
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(wrong):
        raise UserError(
            f"layer {layer}: the router gives {sentences.names[int(wrong[0])]} no finite probabilities; use --dtype "
            "float32 or leave that sentence out, or train the adapter anew"
        )


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
    labels, num_languages, name = samples.labels, samples.num_languages, expert_name(expert)
    languages = measured_languages(seen, labels, num_languages, options.missing, options.min_sentences)
    neurons, high = 0, np.zeros(num_languages, dtype=np.int64)
    for projection in projections:
        pooled = store.read((layer, f"{name} {projection}"))
        if not torch.isfinite(pooled[torch.from_numpy(seen).to(pooled.device)]).all():
            rows = np.flatnonzero(seen)
            names = [sentences.names[int(row)] for row in rows]
            require_finite(f"layer {layer} {name} {projection}", pooled.cpu().numpy()[rows], names)
        scores = score_expert(pooled, seen, labels, languages, options.missing)
        writer.add(layer, name, projection, scores)
        neurons += pooled.shape[1]
        for language, values in scores.items():
            high[language] += int((values >= options.threshold).sum())
    counts = np.bincount(labels[seen], minlength=num_languages)
    return [
        ExpertScores(
            layer,
            name,
            language,
            neurons,
            int(high[index]) if index in languages else None,
            int(counts[index]),
            int(counts.sum() - counts[index]),
        )
        for index, language in enumerate(sentences.languages)
    ]
