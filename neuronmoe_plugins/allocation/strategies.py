"""What an allocation strategy is, and the four that come with the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

from neuronmoe_plugins.allocation.analysis_folder import AnalysisFolder
from neuronmoe_plugins.allocation.options import Combine, Settings
from neuronmoe_plugins.allocation.rules import EvenRule, LinearRule, Rule, ShareRule
from neuronmoe_plugins.allocation.scale import Score
from neuronmoe_plugins.allocation.scores_file import ScoresFile
from neuronmoe_plugins.allocation.similarity import dissimilarities
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
        counts_neurons: Whether `scores` counts neurons, so that what makes two neurons the same is recorded.
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


def _equal_scores(origin: AllocationOrigin, settings: Settings) -> Sequence[Score]:
    """The same for every layer."""
    return [1] * origin.num_layers


neuron_diversity = AllocationStrategy(
    _diversity_scores, LinearRule(), "distinct neurons", options=frozenset({"combine"}), counts_neurons=True
)
source_only = AllocationStrategy(_source_scores, LinearRule(), "distinct neurons of the source", counts_neurons=True)
layer_similarity = AllocationStrategy(_similarity_scores, ShareRule(), "1 / similarity")
uniform = AllocationStrategy(_equal_scores, EvenRule())
