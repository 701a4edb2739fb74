"""Loads the model, runs it over the sentences and scores its neurons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons import pooling
from neuronmoe_plugins.neurons.activations import observe_sentences, working_device
from neuronmoe_plugins.neurons.arrays import ModuleKey, ScoreArray
from neuronmoe_plugins.neurons.components import Component
from neuronmoe_plugins.neurons.loading import default_device, load_model, require_positions
from neuronmoe_plugins.neurons.metrics import NeuronMetric, require_finite
from neuronmoe_plugins.neurons.options import AnalyzeOptions
from neuronmoe_plugins.neurons.places import (
    Place,
    count_mlp_parameters,
    find_activation_functions,
    find_mlp_inputs,
    find_projections,
)
from neuronmoe_plugins.neurons.processes import Processes
from neuronmoe_plugins.neurons.recording import recording
from neuronmoe_plugins.neurons.scoring import make_scorer, score_modules
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from neuronmoe_plugins.neurons.similarity import language_similarity
from neuronmoe_plugins.neurons.store import FileStore, MemoryStore, Store
from neuronmoe_plugins.neurons.table import Neuron

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POOLING = {"mean": pooling.mean, "max": pooling.maximum, "active tokens": pooling.active_tokens}
GIGABYTE = 1e9


@dataclass(frozen=True)
class Measured:
    """What a model showed.

    Attributes:
        scores: For every module float64 (languages, units).
        neurons: The language-specific ones.
        model: What the summary says about the model; JSON values.
        similarity: The tokens compared of each language, and for every layer the mean cosine between languages of the
            MLP's inputs; None if the model's MLPs are of no known family.
    """

    scores: Mapping[ModuleKey, ScoreArray]
    neurons: list[Neuron]
    model: dict[str, Any]
    similarity: dict[str, Any] | None


def measure(
    options: AnalyzeOptions,
    settings: Mapping[str, Any],
    metric: NeuronMetric,
    sentences: TokenizedSentences,
    folder: Path,
    processes: Processes,
    progress: bool,
) -> Measured:
    """Measure the model's neurons.

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
    model = load_model(options.model, options.dtype, _choose_device(options, processes), options.adapter)
    require_positions(model, sentences.token_ids)
    places, unmeasured = _find_places(model, metric, settings["components"])
    description = _describe_model(options, model, unmeasured)
    inputs = find_mlp_inputs(model)
    everything = {
        **{key: (place, POOLING[settings["pooling"]]) for key, place in places.items()},
        **{key: (place, pooling.sum_of_directions) for key, place in inputs.items()},
    }
    units = {key: place.units for key, (place, _) in everything.items()}
    limit = memory_limit(options.memory_limit, model.device, processes)
    store = processes.first_first(lambda: open_store(folder, units, len(sentences.token_ids), limit, processes))
    padding_side, batch_size = sentences.padding_side, options.batch_size
    with out_of_memory_is_an_error(options):
        observe_sentences(
            model, sentences.token_ids, recording(everything), store, batch_size, padding_side, processes, progress
        )
        processes.wait_for_all()
        scored = {key: units[key] for key in places}
        score = make_scorer(options.metric, metric, sentences, working_device(model))
        scores = score_modules(score, scored, store, sentences, folder, processes, progress)
    neurons = metric.select(scores, sentences.languages, settings["top_n"], settings["min_score"])
    return Measured(scores, neurons, description, _measure_similarity(inputs, store, sentences))


def _choose_device(options: AnalyzeOptions, processes: Processes) -> str:
    """The device asked for, or this process's own."""
    if options.device not in (None, "cpu") and processes.world_size > 1:
        raise UserError(
            f"--device {options.device} under torchrun would put every process on the same devices; leave it out, and "
            "each takes a GPU of its own"
        )
    return options.device or default_device(processes.local_rank)


@contextmanager
def out_of_memory_is_an_error(options: AnalyzeOptions) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"--batch-size {options.batch_size} with sentences of up to {options.max_tokens} tokens does not fit into "
            "the device's memory; pass a smaller --batch-size, --max-tokens or --memory-limit, or --dtype bfloat16"
        ) from error


def _find_places(
    model: PreTrainedModel, metric: NeuronMetric, components: list[Component]
) -> tuple[dict[ModuleKey, Place], list[str]]:
    if metric.observes == "activation functions":
        return find_activation_functions(model), []
    return find_projections(model, components)


def memory_limit(asked: float | None, device: torch.device, processes: Processes) -> float:
    """Bytes that may stay in memory: by default none on a CPU, whose page cache keeps the file, half of a free GPU."""
    if processes.world_size > 1:
        if asked:
            raise UserError("--memory-limit has no effect under torchrun, whose processes share a file; leave it out")
        return 0
    if asked is not None:
        return asked * GIGABYTE
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else 0


def open_store(
    folder: Path, units: Mapping[ModuleKey, int], num_sentences: int, limit: float, processes: Processes
) -> Store:
    needed = 4 * num_sentences * sum(units.values())
    if needed <= limit:
        return MemoryStore(num_sentences)
    return FileStore(folder, units, num_sentences, processes.rank)


def _describe_model(options: AnalyzeOptions, model: PreTrainedModel, unmeasured: list[str]) -> dict[str, Any]:
    config = model.config.get_text_config()
    return {
        "model": options.model,
        "adapter": options.adapter,
        "adapter_base": _adapter_base(model),
        "model_type": model.config.model_type,
        "model_commit": getattr(model.config, "_commit_hash", None),
        "dtype": options.dtype,
        "device": options.device or model.device.type,
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "mlp_parameters": count_mlp_parameters(model),
        "unmeasured_modules": unmeasured,
    }


def _adapter_base(model: PreTrainedModel) -> str | None:
    """The model that the adapter says it is for."""
    configs = getattr(model, "peft_config", {}).values()
    return next((config.base_model_name_or_path for config in configs), None)


def _measure_similarity(
    inputs: Mapping[ModuleKey, Place], store: Store, sentences: TokenizedSentences
) -> dict[str, Any] | None:
    if not inputs:
        return None
    tokens, positives = sentences.tokens(), sentences.positives()
    layers = []
    for key in inputs:
        sums = store.read(key).cpu().numpy()
        require_finite(f"layer {key[0]} {key[1]}", sums, sentences.names)
        layers.append(language_similarity(sums, tokens, positives))
    counts = (int(tokens[own].sum()) for own in positives)
    return {
        "tokens": dict(zip(sentences.languages, counts, strict=True)),
        "layers": np.stack(layers).tolist(),
    }
