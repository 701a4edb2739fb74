"""Scores a model's neurons: loads it, runs it over the sentences, and scores one module at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons import pooling
from neuronmoe_plugins.neurons.activations import out_of_memory_is_an_error, pool_activations, working_device
from neuronmoe_plugins.neurons.analysis import Findings
from neuronmoe_plugins.neurons.arrays import Arena, FloatArray, IntArray, ModuleKey, ScoreArray, Store
from neuronmoe_plugins.neurons.layer_measures import Sharing, measure_layers
from neuronmoe_plugins.neurons.loading import default_device, load_model, require_places
from neuronmoe_plugins.neurons.metrics import NeuronMetric, Samples, require_finite
from neuronmoe_plugins.neurons.options import ON_BLOCKS, AnalyzeOptions
from neuronmoe_plugins.neurons.places import (
    Place,
    expert_sizes,
    find_activation_functions,
    find_mlp_inputs,
    find_projections,
)
from neuronmoe_plugins.neurons.processes import Processes
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from neuronmoe_plugins.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POOLING = {"mean": pooling.mean, "max": pooling.maximum, "active tokens": pooling.active_tokens}

Scorer: TypeAlias = Callable[[Tensor], ScoreArray]


def score_neurons(
    options: AnalyzeOptions,
    settings: Mapping[str, Any],
    metric: NeuronMetric,
    sentences: TokenizedSentences,
    folder: Path,
    processes: Processes,
    progress: bool,
) -> Findings:
    """Score a model's neurons and choose the language-specific ones.

    Args:
        options: What to load and where.
        settings: The resolved options.
        metric: How neurons are scored and chosen.
        sentences: The sentences of all languages.
        folder: For activations that do not stay in memory, and to share results between processes.
        processes: This process and its siblings.
        progress: Show progress bars on standard error.

    Raises:
        UserError: if the model cannot be loaded or analysed, or an activation is not finite.
    """
    backward = metric.observes == "attributions"
    asks_losses = backward or not set(options.measures or ()).isdisjoint(ON_BLOCKS)
    device = _choose_device(options, processes)
    model = load_model(options.model, options.dtype, device, options.adapter, needs_head=asks_losses)
    require_places(model, sentences.token_ids)
    unmeasured: list[str] = []
    if metric.observes == "activation functions":
        places = find_activation_functions(model)
    else:
        places, unmeasured = find_projections(model, settings["components"])
    if backward:
        places = _attributed(places, model)
    description = _describe_model(options, model, unmeasured)
    measures = measure_layers(options, model, sentences, Sharing(folder, processes, progress))
    inputs = find_mlp_inputs(model)
    everything = {
        **{key: (place, POOLING[settings["pooling"]]) for key, place in places.items()},
        **{key: (place, pooling.sum_of_directions) for key, place in inputs.items()},
    }
    units = {key: place.units for key, (place, _) in everything.items()}
    store = pool_activations(
        model, sentences, pooling.recording(everything), units, options, folder, processes, progress, backward
    )
    score = make_scorer(options.metric, metric, sentences, working_device(model))
    scored = {key: units[key] for key in places}
    with out_of_memory_is_an_error(options):
        scores = score_modules(score, scored, store, sentences, folder, processes, progress)
    share = {} if metric.share is None else {"share": settings["share"]}
    neurons = metric.select(scores, sentences.languages, settings["top_n"], settings["min_score"], **share)
    return Findings(scores, neurons, description, _mlp_input_similarity(inputs, store, sentences), measures)


def _attributed(places: Mapping[ModuleKey, Place], model: PreTrainedModel) -> dict[ModuleKey, Place]:
    """The same places, of which attributions are taken; raises `UserError` for a mixture of experts."""
    if any("moe_" in name for name, _ in model.named_parameters()):
        raise UserError(
            "--metric attribution asks what the loss owes to each neuron, and a mixture's original MLPs are a part of "
            "what it rests on; leave out --adapter, or use --metric ap"
        )
    return {key: replace(place, attributed=True) for key, place in places.items()}


def _choose_device(options: AnalyzeOptions, processes: Processes) -> str:
    """The device asked for, or this process's own."""
    if options.device not in (None, "cpu") and processes.world_size > 1:
        raise UserError(
            f"--device {options.device} under torchrun would put every process on the same devices; leave it out, and "
            "each takes a GPU of its own"
        )
    return options.device or default_device(processes.local_rank)


def _describe_model(options: AnalyzeOptions, model: PreTrainedModel, unmeasured: list[str]) -> dict[str, Any]:
    config, adapters = model.config.get_text_config(), getattr(model, "peft_config", {}).values()
    return {
        "model": options.model,
        "adapter": options.adapter,
        "adapter_base": next((adapter.base_model_name_or_path for adapter in adapters), None),
        "model_type": model.config.model_type,
        "model_commit": getattr(model.config, "_commit_hash", None),
        "dtype": options.dtype,
        "device": options.device or model.device.type,
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        **expert_sizes(model),
        "unmeasured_modules": unmeasured,
    }


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
    for key in track(mine, "Scoring neurons", progress):
        arena[key][:] = score(read_finite(store, key, sentences.names))
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


def read_finite(store: Store, key: ModuleKey, names: Sequence[str], used: NDArray[np.bool_] | None = None) -> Tensor:
    """What was pooled of a module, float32 (sentences, units).

    Args:
        store: Where it is.
        key: The module.
        names: Of the sentences.
        used: Which sentences have to have finite values, bool (sentences,); all unless given.

    Raises:
        UserError: naming the module and the first of those sentences with a NaN or infinite activation.
    """
    pooled = store.read(key)
    rows = np.arange(len(names)) if used is None else np.flatnonzero(used)
    own = pooled if used is None else pooled[torch.from_numpy(used).to(pooled.device)]
    if not torch.isfinite(own).all():
        require_finite(f"layer {key[0]} {key[1]}", own.cpu().numpy(), [names[int(row)] for row in rows])
    return pooled


def language_similarity(sums_of_directions: FloatArray, tokens: IntArray, positives: NDArray[np.bool_]) -> ScoreArray:
    """Mean cosine between the hidden states of two languages, over all pairs of their tokens (Zhang et al. 2025).

    It is the dot product of the languages' mean unit vectors.

    Args:
        sums_of_directions: For every sentence the sum of its tokens' hidden states, each of length one; float32
            (samples, hidden).
        tokens: Tokens of every sentence, int64 (samples,).
        positives: Which sentences are a language's own, bool (languages, samples).

    Returns:
        float64 (languages, languages), symmetric; the diagonal compares a language's tokens with each other.
    """
    means = np.stack([sums_of_directions[own].sum(axis=0, dtype=np.float64) / tokens[own].sum() for own in positives])
    return means @ means.T


def _mlp_input_similarity(
    inputs: Mapping[ModuleKey, Place], store: Store, sentences: TokenizedSentences
) -> dict[str, Any] | None:
    if not inputs:
        return None
    tokens, positives = sentences.tokens(), sentences.positives()
    sums = (read_finite(store, key, sentences.names).cpu().numpy() for key in inputs)
    layers = [language_similarity(own, tokens, positives).tolist() for own in sums]
    counts = (int(tokens[own].sum()) for own in positives)
    return {"tokens": dict(zip(sentences.languages, counts, strict=True)), "layers": layers}
