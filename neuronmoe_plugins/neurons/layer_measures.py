"""What an analysis measures of each layer's MLP beside its neurons, where it is asked to: gradients, and spectra.

Shapes: B blocks of T tokens, L decoder layers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.feed_forward import find_feed_forwards
from neuronmoe_plugins.neurons.activations import working_device
from neuronmoe_plugins.neurons.arrays import Arena, ScoreArray
from neuronmoe_plugins.neurons.options import BLOCK_TOKENS, AnalyzeOptions
from neuronmoe_plugins.neurons.processes import Processes
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from neuronmoe_plugins.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of an eigenvalue by the largest: below, float32 has nothing but rounding.
SMALLEST_LOGARITHM = math.log(1e-12)


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
        for row in track(self.processes.share(range(count)), f"Measuring the {name}", self.progress):
            arena[row, name][:] = measure(row)
        self.processes.wait_for_all()
        return np.concatenate(list(arena.values()))


def measure_layers(
    options: AnalyzeOptions, model: PreTrainedModel, sentences: TokenizedSentences, sharing: Sharing
) -> dict[str, Any]:
    """What `--measure` asks for, as the summary has it: `layer_gradients` and `layer_spectra`, None where not asked.

    Args:
        options: What to measure, and on how many blocks.
        model: A causal language model on its devices, without an adapter; afterwards no parameter requires a gradient.
        sentences: The sentences of all languages.
        sharing: With the processes that run the same call.

    Raises:
        UserError: for MLPs of no known kind, weights that are quantised or elsewhere, too little text, and results that
            are not finite.
    """
    measures = options.measures or ()
    weights = _mlp_weights(model) if measures else []
    return {
        "layer_gradients": _gradients(options, model, weights, sentences, sharing) if "gradient" in measures else None,
        "layer_spectra": _spectra(weights, sharing) if "spectral" in measures else None,
    }


def _spectra(weights: Sequence[dict[str, nn.Parameter]], sharing: Sharing) -> list[float]:
    found = sharing.rows("spectrum", len(weights), 1, lambda layer: [mean_exponent(weights[layer])])
    return [float(exponent) for exponent in found[:, 0]]


def _gradients(
    options: AnalyzeOptions,
    model: PreTrainedModel,
    weights: Sequence[dict[str, nn.Parameter]],
    sentences: TokenizedSentences,
    sharing: Sharing,
) -> dict[str, Any]:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    count, tokens = options.gradient_blocks or 6, min(BLOCK_TOKENS, positions or BLOCK_TOKENS)
    blocks = language_blocks(sentences, count, tokens, options.sampling()["seed"])
    every = [block for own in blocks.values() for block in own]
    with squared_gradients(model, weights) as of_block:
        rows = sharing.rows("gradient", len(every), len(weights), lambda row: of_block(every[row]))
    means = rows.reshape(len(blocks), count, len(weights)).mean(axis=1)
    for language, row in zip(blocks, means, strict=True):
        if not np.isfinite(row).all():
            layer = int(np.flatnonzero(~np.isfinite(row))[0])
            raise UserError(
                f"--measure gradient: that of {language} in layer {layer} is {row[layer]}; use --dtype float32"
            )
    return {"blocks": count, "tokens": tokens, "languages": dict(zip(blocks, means.tolist(), strict=True))}


def _mlp_weights(model: PreTrainedModel) -> list[dict[str, nn.Parameter]]:
    """The weights and biases of each decoder layer's MLP by name, all of which are here and in floating point."""
    try:
        mlps = find_feed_forwards(model)
    except ValueError as error:
        raise UserError(f"--measure: {error}") from error
    found = []
    for mlp in mlps.values():
        names = [f"{mlp.name}.{name}" for name in mlp.family.projections]
        own = {f"{name}.{kind}": each for name in names for kind, each in model.get_submodule(name).named_parameters()}
        for name, parameter in own.items():
            if parameter.is_meta or not parameter.is_floating_point():
                problem = "is not in memory" if parameter.is_meta else f"is quantised ({parameter.dtype})"
                raise UserError(f"--measure needs the MLPs' weights as they were trained: {name} {problem}")
        found.append(own)
    return found


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
            instead = f" or --gradient-blocks {len(joined) // tokens}" if len(joined) >= tokens else ""
            raise UserError(
                f"{language}: --measure gradient needs {count} x {tokens} tokens, but the {len(rows)} sampled "
                f"sentences have {len(joined)}; pass more --samples{instead}"
            )
        blocks[language] = [joined[start : start + tokens] for start in range(0, count * tokens, tokens)]
    return blocks


@contextmanager
def squared_gradients(
    model: PreTrainedModel, weights: Sequence[dict[str, nn.Parameter]]
) -> Iterator[Callable[[Sequence[int]], list[float]]]:
    """A function from a block to the squared gradient of its mean loss, summed over each layer's MLP weights.

    The trace of the empirical Fisher information, for one block. A weight's gradient is squared, summed and freed as
    soon as the backward pass has it, so that there is never more than one beside the block's activations.
    """
    sums = [0.0] * len(weights)

    def take(layer: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        sums[layer] += float(parameter.grad.float().square().sum(dtype=torch.float64))
        parameter.grad = None

    def run(block: Sequence[int]) -> list[float]:
        sums[:] = [0.0] * len(weights)
        ids = torch.tensor([block], device=working_device(model))
        try:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the backward pass of a block of {len(block)} tokens does not fit into the device's memory; pass "
                "--dtype bfloat16 or --device auto, or leave --measure gradient out"
            ) from error
        return list(sums)

    model.requires_grad_(False)
    with ExitStack() as hooks:
        for layer, own in enumerate(weights):
            for parameter in own.values():
                parameter.requires_grad_(True)
                hooks.callback(parameter.register_post_accumulate_grad_hook(partial(take, layer)).remove)
        yield run
    model.requires_grad_(False)


def mean_exponent(weights: dict[str, nn.Parameter]) -> float:
    """The mean of the exponents of an MLP's matrices; raises `UserError` naming one that has none."""
    exponents = []
    for name, weight in weights.items():
        if weight.dim() == 2:
            exponents.append(hill_exponent(torch.linalg.svdvals(weight.detach().float()).double().square()))
            if not math.isfinite(exponents[-1]):
                why = "its larger eigenvalues are all equal, or half of them are zero"
                raise UserError(f"--measure spectral: {name} has no exponent: {why}")
    return sum(exponents) / len(exponents)


def hill_exponent(eigenvalues: Tensor) -> float:
    """PL_Alpha_Hill of AlphaLoRA (Qing et al. 2024, arXiv 2410.10054), Hill's estimator of a power law's exponent.

    alpha = 1 + k / sum_{i=1..k} ln(lambda_{n-i+1} / lambda_{n-k}), for ascending eigenvalues and k = n // 2: the larger
    half of them is taken for the tail of a density in proportion to lambda^-alpha. The larger alpha, the lighter the
    tail and the less a layer was trained. The published code takes attention's matrices, too, and the k at which the
    Kolmogorov-Smirnov distance is least.

    Args:
        eigenvalues: Those of W^T W, float64 (n,), in descending order, n >= 2.

    Returns:
        alpha > 1; infinite if the tail is flat, or zero but for rounding.
    """
    tail = len(eigenvalues) // 2
    logarithms = (eigenvalues[: tail + 1] / eigenvalues[0]).log()
    total = float((logarithms[:tail] - logarithms[tail]).sum())
    return 1 + tail / total if total > 0 and logarithms[tail] > SMALLEST_LOGARITHM else math.inf
