"""What a neuron metric is: a score per unit and language, and the choice of neurons that follows from the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.arrays import FloatArray, IntArray, ModuleKey, ScoreArray
from neuronmoe_plugins.neurons.average_precision import average_precision, average_precision_torch
from neuronmoe_plugins.plugins import registered

if TYPE_CHECKING:
    from torch import Tensor

Observed = Literal["projections", "activation functions", "attributions"]


@dataclass(frozen=True)
class Neuron:
    """One row: neuron `unit` of `module` in decoder layer `layer` is specific to `language`."""

    language: str
    layer: int
    module: str
    unit: int
    score: float


def select_neurons(
    scores: Mapping[ModuleKey, ScoreArray], languages: Sequence[str], top_n: int | None, min_score: float | None
) -> list[Neuron]:
    """The `top_n` best neurons of each language that score above `min_score` (paper, section 3.1).

    Args:
        scores: for each (layer, module) float64 (languages, units).
        languages: names of the score rows.
        top_n: at most so many per language, if not None.
        min_score: only those that score above it, if not None.

    Returns:
        neurons by language, best first; of equal scores the one in the earlier module of `scores`, then the lower unit.
    """
    keys = list(scores)
    neurons: list[Neuron] = []
    for row, language in enumerate(languages):
        flat = np.concatenate([scores[key][row] for key in keys])
        best = np.argsort(-flat, kind="stable")[:top_n]
        best = best if min_score is None else best[flat[best] > min_score]
        for ((layer, module), unit), score in zip(locate(best, keys, scores), flat[best], strict=True):
            neurons.append(Neuron(language, layer, module, unit, float(score)))
    return neurons


def locate(
    places: NDArray[np.intp], keys: Sequence[ModuleKey], scores: Mapping[ModuleKey, ScoreArray]
) -> list[tuple[ModuleKey, int]]:
    """Module and unit of places in the concatenation of all modules' units, in the order of `keys`."""
    ends = np.cumsum([scores[key].shape[1] for key in keys])
    modules = np.searchsorted(ends, places, side="right")
    starts = np.concatenate([[0], ends[:-1]])
    return [(keys[module], int(place - starts[module])) for module, place in zip(modules, places, strict=True)]


@dataclass(frozen=True)
class Samples:
    """The sentences that a metric compares.

    Attributes:
        labels: Language index of every sentence, int64 (samples,).
        num_languages: Number of languages.
        tokens: Tokens of every sentence, int64 (samples,).
    """

    labels: IntArray
    num_languages: int
    tokens: IntArray


Selection: TypeAlias = Callable[..., list[Neuron]]
"""Chooses neurons: takes the scores of all modules, the languages' names, and --top-n and --min-score."""


@dataclass(frozen=True)
class NeuronMetric:
    """A way to find language-specific neurons.

    Attributes:
        score: Takes what was pooled of one module, float32 (samples, units), and the samples; returns float64
            (languages, units).
        observes: What is pooled. "projections": the outputs of the linear layers, their mean or maximum over a
            sentence's tokens. "activation functions": for how many of a sentence's tokens the MLP's activation function
            gives more than zero. "attributions": the outputs of the linear layers times the negative gradient of the
            sentence's loss with respect to them.
        select: Takes the scores of all modules, the languages' names, and --top-n and --min-score; returns the neurons.
        top_n: What --top-n is unless given; None for no limit.
        min_score: What --min-score is unless given; None for no limit.
        share: What --share is unless given, if `select` also takes the keyword `share`: of all units, those from which
            it may choose.
        one_against_rest: Whether a language's scores depend only on which samples are its own. Then each can be scored
            alone, on samples of two kinds: 0, the others, and 1, its own.
        score_tensor: As `score`, for a tensor on a GPU, with labels as int64 tensor and the number of languages.
    """

    score: Callable[[FloatArray, Samples], ScoreArray]
    observes: Observed = "projections"
    select: Selection = select_neurons
    top_n: int | None = 1000
    min_score: float | None = 0.5
    share: float | None = None
    one_against_rest: bool = False
    score_tensor: Callable[[Tensor, Tensor, int], Tensor] | None = None


Metric: TypeAlias = NeuronMetric | Callable[[FloatArray, IntArray, int], ScoreArray]
"""What a plugin registers; a function takes pooled activations of projections, labels and the number of languages."""


def metrics() -> dict[str, Metric]:
    """All neuron metrics by name; raises `UserError` if plugins cannot be loaded or two have one name."""
    return dict(sorted(registered("metric").items()))


def as_metric(metric: Metric) -> NeuronMetric:
    """A registered metric: as it is, or made of a function of activations, labels and the number of languages."""
    if isinstance(metric, NeuronMetric):
        return metric
    return NeuronMetric(lambda pooled, samples: metric(pooled, samples.labels, samples.num_languages))


AVERAGE_PRECISION = replace(as_metric(average_precision), one_against_rest=True, score_tensor=average_precision_torch)
ATTRIBUTION = replace(AVERAGE_PRECISION, observes="attributions")
"""Average precision by what the loss would rise without the neuron, to first order (Molchanov et al. 2017, Eq. 7).

What counts is what predictions owe to a neuron, not how active it is, as CRANE (Le and Li 2026, arXiv 2601.04664) asks.
It propagates relevance by rules of its own instead, and verifies by masking.
"""


def require_finite(module: str, pooled: FloatArray, sample_names: Sequence[str]) -> None:
    """Raise `UserError` naming the module and the first sample with a NaN or infinite activation."""
    finite = np.isfinite(pooled)
    if finite.all():
        return
    sample, unit = (int(index) for index in np.argwhere(~finite)[0])
    raise UserError(
        f"{module}, unit {unit}: the activation for {sample_names[sample]} is {pooled[sample, unit]}; "
        "use --dtype float32 or leave that sentence out"
    )
