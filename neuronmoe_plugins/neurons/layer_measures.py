"""What an analysis measures of each decoder layer beside its neurons, where it is asked to."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.arrays import Arena, ScoreArray
from neuronmoe_plugins.neurons.layer_scores import (
    deviation,
    knock_outs,
    mean_exponent,
    mixtures_of_all_layers,
    mlp_weights,
    squared_gradients,
)
from neuronmoe_plugins.neurons.options import BLOCK_TOKENS, AnalyzeOptions
from neuronmoe_plugins.neurons.processes import Processes
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from neuronmoe_plugins.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")


@dataclass(frozen=True)
class Sharing:
    """How the processes of an analysis share measurements: this one and its siblings, and a folder of theirs."""

    folder: Path
    processes: Processes
    progress: bool

    def rows(self, name: str, count: int, columns: int, measure: Callable[[int], Sequence[float]]) -> ScoreArray:
        """Float64 (count, columns) in all processes, each of which measures its share of the rows."""
        shapes = {(row, name): (1, columns) for row in range(count)}
        arena = self.processes.first_first(lambda: Arena(self.folder / f"{name}.f64", shapes, np.float64))
        for row in track(self.processes.share(range(count)), f"Measuring {name}", self.progress):
            arena[row, name][:] = measure(row)
        self.processes.wait_for_all()
        return np.concatenate(list(arena.values()))


def measure_layers(
    options: AnalyzeOptions, model: PreTrainedModel, sentences: TokenizedSentences, sharing: Sharing
) -> dict[str, Any]:
    """What `--measure` asks for, as the summary has it, None where it was not asked for.

    Args:
        options: What to measure, and on how many blocks.
        model: A causal language model on its devices; afterwards no parameter requires a gradient if one was measured.
        sentences: The sentences of all languages.
        sharing: With the processes that run the same call.

    Returns:
        One number per decoder layer: `layer_spectra` and `layer_deviations`; `layer_gradients` and `layer_knock_outs`
        by language, with the number and size of the blocks.

    Raises:
        UserError: for MLPs of no known kind, weights that are quantised or elsewhere, an adapter without an expert in
            some layer, too little text, and results that are not finite.
    """
    measures: dict[str, tuple[str, Callable[[], Any]]] = {
        "gradient": ("layer_gradients", lambda: _gradients(options, model, sentences, sharing)),
        "spectral": ("layer_spectra", lambda: _of_layers(mlp_weights(model), mean_exponent, "spectra", sharing)),
        "parameter-deviation": (
            "layer_deviations",
            lambda: _of_layers(list(mixtures_of_all_layers(model).values()), deviation, "deviations", sharing),
        ),
        "knock-out": ("layer_knock_outs", lambda: _knock_outs(options, model, sentences, sharing)),
    }
    asked = options.measures or ()
    return {key: measure() if name in asked else None for name, (key, measure) in measures.items()}


def _of_layers(layers: Sequence[T], measure: Callable[[T], float], name: str, sharing: Sharing) -> list[float]:
    found: list[float] = sharing.rows(name, len(layers), 1, lambda layer: [measure(layers[layer])])[:, 0].tolist()
    return found


def _gradients(
    options: AnalyzeOptions, model: PreTrainedModel, sentences: TokenizedSentences, sharing: Sharing
) -> dict[str, Any]:
    weights = mlp_weights(model)
    with squared_gradients(model, weights) as of_block:
        return _by_language("gradient", of_block, len(weights), options, model, sentences, sharing)


def _knock_outs(
    options: AnalyzeOptions, model: PreTrainedModel, sentences: TokenizedSentences, sharing: Sharing
) -> dict[str, Any]:
    mixtures = mixtures_of_all_layers(model)
    of_block = partial(knock_outs, model, mixtures)
    return _by_language("knock-out", of_block, len(mixtures), options, model, sentences, sharing)


def _by_language(
    name: str,
    of_block: Callable[[Sequence[int]], Sequence[float]],
    num_layers: int,
    options: AnalyzeOptions,
    model: PreTrainedModel,
    sentences: TokenizedSentences,
    sharing: Sharing,
) -> dict[str, Any]:
    """The mean over each language's blocks of what a block gives for each layer."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    count, tokens = options.blocks or 6, min(BLOCK_TOKENS, positions or BLOCK_TOKENS)
    blocks = language_blocks(sentences, count, tokens, options.sampling()["seed"])
    every = [block for own in blocks.values() for block in own]
    rows = sharing.rows(f"{name}s", len(every), num_layers, lambda row: of_block(every[row]))
    means = rows.reshape(len(blocks), count, num_layers).mean(axis=1)
    for language, row in zip(blocks, means, strict=True):
        if not np.isfinite(row).all():
            layer = int(np.flatnonzero(~np.isfinite(row))[0])
            raise UserError(f"--measure {name}: {language} gives {row[layer]} in layer {layer}; use --dtype float32")
    return {"blocks": count, "tokens": tokens, "languages": dict(zip(blocks, means.tolist(), strict=True))}


def language_blocks(sentences: TokenizedSentences, count: int, tokens: int, seed: int) -> dict[str, list[list[int]]]:
    """Language -> `count` blocks of `tokens` tokens each: its own sentences in an order that the seed draws, joined.

    Raises:
        UserError: if a language has too few tokens.
    """
    positives, blocks = sentences.positives(), {}
    spans = sentences.own or [(0, len(ids)) for ids in sentences.token_ids]
    for language, own in zip(sentences.languages, positives, strict=True):
        rows = np.flatnonzero(own).tolist()
        random.Random(f"{seed}:{language}").shuffle(rows)
        joined = [token for row in rows for token in sentences.token_ids[row][slice(*spans[row])]]
        if len(joined) < count * tokens:
            instead = f" or --blocks {len(joined) // tokens}" if len(joined) >= tokens else ""
            raise UserError(
                f"{language}: {count} blocks of {tokens} tokens are to be measured, but the {len(rows)} sampled "
                f"sentences have {len(joined)} in all; pass more --samples{instead}"
            )
        blocks[language] = [joined[start : start + tokens] for start in range(0, count * tokens, tokens)]
    return blocks
