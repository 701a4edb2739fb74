"""What an allocation strategy is, and the strategies that come with the package."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from statistics import fmean
from typing import TypeAlias

from neuronmoe_plugins.allocation.experts import Combine, Score, Shape
from neuronmoe_plugins.allocation.request import Settings
from neuronmoe_plugins.allocation.rules import EvenRule, FormRule, LinearRule, Rule, ShareRule
from neuronmoe_plugins.allocation.scores import AnalysisFolder, ScoresFile, dissimilarities
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.plugins import registered

AllocationOrigin: TypeAlias = AnalysisFolder | ScoresFile
ScoreFunction: TypeAlias = Callable[[AllocationOrigin, Settings], Sequence[Score]]


@dataclass(frozen=True)
class AllocationStrategy:
    """A score for every layer, and a rule from scores to experts.

    `--scale`, `--total-experts` and `--max-added-parameters` work with every strategy: the score function need not
    know them.

    Attributes:
        scores: Takes the origin (an analysis or a scores file) and the settings (source, targets, options); returns one
            score per decoder layer, finite and zero or more; raises `UserError` for what it cannot score.
        rule: How scores become experts.
        score_name: What a score is, for tables and figures.
        options: Names of the options that `scores` looks at, beside origin, source and targets ("combine").
        counts_neurons: Whether `scores` counts neurons, so that what makes two neurons the same is recorded, and its
            options have no effect on a scores file.
    """

    scores: ScoreFunction
    rule: Rule = field(default_factory=LinearRule)
    score_name: str = "layer score"
    options: frozenset[str] = frozenset()
    counts_neurons: bool = False


def allocation_strategies() -> dict[str, AllocationStrategy]:
    """All allocation strategies by name; raises `UserError` if plugins cannot be loaded or two have one name."""
    return dict(sorted(registered("allocation strategy").items()))


def _diversity_scores(origin: AllocationOrigin, settings: Settings) -> Sequence[Score]:
    """Distinct language-specific neurons of each layer over source and targets (paper, Eq. 2)."""
    if isinstance(origin, ScoresFile):
        return origin.layer_scores()
    source, targets = origin.require_languages(settings.source, settings.targets)
    if settings.combine is Combine.UNION:
        return origin.counts(source, *targets)
    counts = zip(*map(origin.counts, targets), strict=True)
    means = [Fraction(sum(layer), len(targets)) for layer in counts]
    return [own + mean for own, mean in zip(origin.counts(source), means, strict=True)]


def _source_scores(origin: AllocationOrigin, settings: Settings) -> Sequence[Score]:
    """Distinct neurons of the source alone (the paper's NeuronMoE-EN); targets are recorded, not counted."""
    if isinstance(origin, ScoresFile):
        return origin.layer_scores()
    if settings.source is None:
        raise UserError(f"{origin.path} is an analysis: pass --source LANGUAGE")
    return origin.counts(settings.source)


def _similarity_scores(origin: AllocationOrigin, settings: Settings) -> Sequence[Score]:
    """1 / similarity of source and targets in each layer's MLP input (LayerMoE, Zhang et al. 2025)."""
    return dissimilarities(origin.similarities(settings.source, settings.targets))


def _of_targets(key: str, origin: AllocationOrigin, settings: Settings) -> Sequence[Score]:
    """What an analysis measured under that key of each layer, the mean over the targets."""
    if isinstance(origin, ScoresFile):
        return origin.layer_scores()
    if not settings.targets:
        raise UserError(f"{origin.path} is an analysis: pass at least one --target LANGUAGE")
    by_target = [origin.measured(key, target) for target in settings.targets]
    return [fmean(layer) for layer in zip(*by_target, strict=True)]


def _gradient_ratio_scores(origin: AllocationOrigin, settings: Settings) -> Sequence[Score]:
    """The targets' gradient by that of the source: where they pull more than what the model knows already."""
    if isinstance(origin, ScoresFile):
        return origin.layer_scores()
    source, _ = origin.require_languages(settings.source, settings.targets)
    by, own = origin.measured("layer_gradients", source), _of_targets("layer_gradients", origin, settings)
    if 0 in by:
        wrong = f"the gradient of {source} in layer {by.index(0)} is 0"
        raise UserError(f"{origin.json_path}: {wrong}; use another --strategy")
    return [mine / other for mine, other in zip(own, by, strict=True)]


def _spectral_scores(origin: AllocationOrigin, settings: Settings) -> Sequence[Score]:
    """alpha^2.5 of each layer's MLP (AlphaLoRA, Qing et al. 2024): the lighter its spectra's tails, the more experts.

    AlphaLoRA gives layer l the part alpha_l^beta / sum(alpha^beta) of all experts, with beta = 2.5.
    """
    if isinstance(origin, ScoresFile):
        return origin.layer_scores()
    return [exponent**2.5 for exponent in origin.measured("layer_spectra")]


def _deviation_scores(origin: AllocationOrigin, settings: Settings) -> Sequence[Score]:
    """How far a few steps of training took a new expert of each layer (DMoE, Li et al. 2025)."""
    return origin.layer_scores() if isinstance(origin, ScoresFile) else origin.measured("layer_deviations")


def _knock_out_scores(origin: AllocationOrigin, settings: Settings) -> Sequence[Score]:
    """By how much the targets' loss grows without the expert of each layer; 0 where it falls."""
    return [max(growth, 0) for growth in _of_targets("layer_knock_outs", origin, settings)]


def _equal_scores(origin: AllocationOrigin, settings: Settings) -> Sequence[Score]:
    """The same for every layer."""
    return [1] * origin.num_layers


def _shape_scores(origin: AllocationOrigin, settings: Settings) -> Sequence[Score]:
    """Those of the form that was asked for, which nothing but the number of layers decides."""
    if settings.shape is None:
        raise UserError(f"--strategy {settings.strategy} needs --shape: {', '.join(Shape)}")
    if settings.shape is Shape.RANDOM and settings.seed is None:
        raise UserError("--shape random needs --seed N, which draws the same layers again")
    if settings.shape is not Shape.RANDOM and settings.seed is not None:
        raise UserError(f"--seed has no effect with --shape {settings.shape.value}; leave it out")
    return shape_scores(settings.shape, origin.num_layers, settings.seed)


def shape_scores(shape: Shape, num_layers: int, seed: int | None = None) -> list[Fraction]:
    """The new experts of each layer in proportion: for 4 layers 4:2:2:4 (ends), 1:3:3:1 (middle), 4:3:2:1 (early).

    `late` mirrors `early`, and `random` puts its scores in an order that the seed draws. Those of `even` are all 1, but
    for what decides which layers get the experts that are left over: the first, the last, then ever the one farthest
    from all that have one, of equally far ones the lower.
    """
    layers = range(num_layers)
    from_middle = [abs(2 * layer - (num_layers - 1)) for layer in layers]
    if shape is Shape.ENDS:
        return [Fraction(1 + distance) for distance in from_middle]
    if shape is Shape.MIDDLE:
        return [Fraction(num_layers - distance) for distance in from_middle]
    if shape is Shape.EVEN:
        # Far too little to count as an expert.
        return [1 - Fraction(place, 2**100) for place in _ranks(_farthest_first(num_layers))]
    if shape is Shape.RANDOM:
        drawn = random.Random(seed)
        return [Fraction(1 + rank) for rank in _ranks(sorted(layers, key=lambda layer: drawn.random()))]
    return [Fraction(1 + layer if shape is Shape.LATE else num_layers - layer) for layer in layers]


def _farthest_first(num_layers: int) -> list[int]:
    """All layers, the first before the last, and then ever the one farthest from those before it."""
    order, distances = [0], list(range(num_layers))
    while len(order) < num_layers:
        order.append(max(range(num_layers), key=distances.__getitem__))
        distances = [min(distance, abs(layer - order[-1])) for layer, distance in enumerate(distances)]
    return order


def _ranks(order: Sequence[int]) -> list[int]:
    """The place of every layer in an order of the layers."""
    return sorted(range(len(order)), key=order.__getitem__)


neuron_diversity = AllocationStrategy(
    _diversity_scores, LinearRule(), "distinct neurons", options=frozenset({"combine"}), counts_neurons=True
)
source_only = AllocationStrategy(_source_scores, LinearRule(), "distinct neurons of the source", counts_neurons=True)
layer_similarity = AllocationStrategy(_similarity_scores, ShareRule(), "1 / similarity")
shape = AllocationStrategy(_shape_scores, FormRule(), "weight of the layer", options=frozenset({"shape", "seed"}))
gradient = AllocationStrategy(partial(_of_targets, "layer_gradients"), LinearRule(), "squared gradient")
gradient_ratio = AllocationStrategy(_gradient_ratio_scores, LinearRule(), "squared gradient by the source's")
spectral = AllocationStrategy(_spectral_scores, FormRule(), "spectral exponent ^ 2.5")
parameter_deviation = AllocationStrategy(_deviation_scores, LinearRule(), "change by training")
knock_out = AllocationStrategy(_knock_out_scores, LinearRule(), "growth of the loss without it")
uniform = AllocationStrategy(_equal_scores, EvenRule())

BUILT_IN = {
    "neuron-diversity": neuron_diversity,
    "source-only": source_only,
    "layer-similarity": layer_similarity,
    "gradient": gradient,
    "gradient-ratio": gradient_ratio,
    "spectral": spectral,
    "parameter-deviation": parameter_deviation,
    "knock-out": knock_out,
    "uniform": uniform,
    "shape": shape,
}
