"""What a neuron metric is: a score per unit and language, and the choice of neurons that follows from the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.arrays import FloatArray, IntArray, ModuleKey, ScoreArray
from neuronmoe_plugins.neurons.average_precision import average_precision
from neuronmoe_plugins.neurons.table import Neuron, select_neurons
from neuronmoe_plugins.plugins import registered

if TYPE_CHECKING:
    from torch import Tensor

Observed = Literal["projections", "activation functions"]


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


class Selection(Protocol):
    """Chooses neurons from the scores of all modules."""

    def __call__(
        self,
        scores: Mapping[ModuleKey, ScoreArray],
        languages: Sequence[str],
        top_n: int | None,
        min_score: float | None,
    ) -> list[Neuron]: ...


@dataclass(frozen=True)
class NeuronMetric:
    """A way to find language-specific neurons.

    Attributes:
        score: Takes what was pooled of one module, float32 (samples, units), and the samples; returns float64
            (languages, units).
        observes: What is pooled. "projections": the outputs of the linear layers, their mean or maximum over a
            sentence's tokens. "activation functions": for how many of a sentence's tokens the MLP's activation function
            gives more than zero.
        select: Takes the scores of all modules, the languages' names, and --top-n and --min-score; returns the neurons.
        top_n: What --top-n is unless given; None for no limit.
        min_score: What --min-score is unless given; None for no limit.
        one_against_rest: Whether a language's scores depend only on which samples are its own. Then each can be scored
            alone, on samples of two kinds: 0, the others, and 1, its own.
        score_tensor: As `score`, for a tensor on a GPU, with labels as int64 tensor and the number of languages.
    """

    score: Callable[[FloatArray, Samples], ScoreArray]
    observes: Observed = "projections"
    select: Selection = select_neurons
    top_n: int | None = 1000
    min_score: float | None = 0.5
    one_against_rest: bool = False
    score_tensor: Callable[[Tensor, Tensor, int], Tensor] | None = None


Metric: TypeAlias = NeuronMetric | Callable[[FloatArray, IntArray, int], ScoreArray]
"""What a plugin registers; a function takes pooled activations of projections, labels and the number of languages."""


def metrics() -> dict[str, Metric]:
    """All neuron metrics by name; raises `UserError` if plugins cannot be loaded or two have one name."""
    return dict(sorted(registered("metric").items()))


def _average_precision_on_device(pooled: Tensor, labels: Tensor, num_languages: int) -> Tensor:
    from neuronmoe_plugins.neurons.average_precision_torch import average_precision_torch

    return average_precision_torch(pooled, labels, num_languages)


AVERAGE_PRECISION = NeuronMetric(
    lambda pooled, samples: average_precision(pooled, samples.labels, samples.num_languages),
    one_against_rest=True,
    score_tensor=_average_precision_on_device,
)


def as_metric(metric: Metric) -> NeuronMetric:
    """A registered metric: as it is, or made of a function of activations, labels and the number of languages."""
    if isinstance(metric, NeuronMetric):
        return metric
    return NeuronMetric(lambda pooled, samples: metric(pooled, samples.labels, samples.num_languages))


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
