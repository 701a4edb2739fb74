"""What an allocation strategy is, the rules from scores to experts, and the strategies that come with the package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, TypeAlias

from neuronmoe_plugins.allocation.allocation import Combine, Settings
from neuronmoe_plugins.allocation.experts import ExpertPlan, Ramp, Score, ceil_shares, scale_experts
from neuronmoe_plugins.allocation.scores import AnalysisFolder, ScoresFile, dissimilarities
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.plugins import registered

AllocationOrigin: TypeAlias = AnalysisFolder | ScoresFile
ScoreFunction: TypeAlias = Callable[[AllocationOrigin, Settings], Sequence[Score]]


class Rule(ABC):
    """From layer scores to experts per layer.

    Attributes:
        options: Options of `neuronmoe allocate` that matter when no total is asked for.
        total_options: Those that matter when one is.
        default_max_experts: `--max-experts` where it is not given; None for no limit.
    """

    options: ClassVar[frozenset[str]]
    total_options: ClassVar[frozenset[str]]
    default_max_experts: ClassVar[int | None] = 6

    @abstractmethod
    def experts(self, scores: Sequence[Fraction], settings: Settings) -> ExpertPlan:
        """Experts per layer, within the settings' limits, from finite scores of zero or more."""

    @abstractmethod
    def ramp(self, scores: Sequence[Fraction], settings: Settings) -> Ramp:
        """In what proportion the layers' experts grow with a total."""


class LinearRule(Rule):
    """The paper's: linear between the least and the most experts (Eq. 3 and 4).

    With a total, what a layer has above the minimum is in proportion to its score above the lowest.
    """

    options = frozenset({"min_experts", "max_experts", "rounding", "scale"})
    total_options = frozenset({"min_experts", "max_experts", "scale"})
    default_max_experts = 6

    def experts(self, scores: Sequence[Fraction], settings: Settings) -> ExpertPlan:
        """Eq. 3 and 4."""
        return scale_experts(scores, settings.min_experts, settings.required_max_experts(), settings.rounding)

    def ramp(self, scores: Sequence[Fraction], settings: Settings) -> Ramp:
        """From the minimum up, with the score above the lowest as slope."""
        lowest = min(scores)
        return Ramp(settings.min_experts, [score - lowest for score in scores])


class ShareRule(Rule):
    """LayerMoE's: all experts of a layer, the base MLP included, in proportion to its score.

    Without a total, each layer's share of `--budget` is rounded up.
    """

    options = frozenset({"min_experts", "max_experts", "scale", "budget"})
    total_options = frozenset({"min_experts", "max_experts", "scale"})
    default_max_experts = None

    def experts(self, scores: Sequence[Fraction], settings: Settings) -> ExpertPlan:
        """The ceilings of the shares, within the limits; raises `UserError` without a budget."""
        if settings.budget is None:
            raise UserError(
                f"--strategy {settings.strategy} needs one of --budget N (shared out before rounding up: the published "
                "70 for 28 layers gave 84 experts), --total-experts N and --max-added-parameters N"
            )
        shares = [max(share, settings.min_experts) for share in ceil_shares(scores, settings.budget)]
        most = settings.max_experts
        return ExpertPlan(shares if most is None else [min(share, most) for share in shares])

    def ramp(self, scores: Sequence[Fraction], settings: Settings) -> Ramp:
        """From nothing up, with the score as slope."""
        return Ramp(0, scores)


class EvenRule(Rule):
    """Every layer alike: `--max-experts` each, or an equal part of the total; scores do not matter."""

    options = frozenset({"max_experts"})
    total_options = frozenset({"min_experts", "max_experts"})
    default_max_experts = 6

    def experts(self, scores: Sequence[Fraction], settings: Settings) -> ExpertPlan:
        """`--max-experts` in every layer."""
        return ExpertPlan([settings.required_max_experts()] * len(scores))

    def ramp(self, scores: Sequence[Fraction], settings: Settings) -> Ramp:
        """All at the same pace."""
        return Ramp(0, [Fraction(1)] * len(scores))


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


def _equal_scores(origin: AllocationOrigin, settings: Settings) -> Sequence[Score]:
    """The same for every layer."""
    return [1] * origin.num_layers


neuron_diversity = AllocationStrategy(
    _diversity_scores, LinearRule(), "distinct neurons", options=frozenset({"combine"}), counts_neurons=True
)
source_only = AllocationStrategy(_source_scores, LinearRule(), "distinct neurons of the source", counts_neurons=True)
layer_similarity = AllocationStrategy(_similarity_scores, ShareRule(), "1 / similarity")
uniform = AllocationStrategy(_equal_scores, EvenRule())

BUILT_IN = {
    "neuron-diversity": neuron_diversity,
    "source-only": source_only,
    "layer-similarity": layer_similarity,
    "uniform": uniform,
}
