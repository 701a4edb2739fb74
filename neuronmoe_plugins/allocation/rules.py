"""The rules from layer scores to experts per layer: the paper's, LayerMoE's, and those of `--placement`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

from neuronmoe_plugins.allocation.experts import ExpertPlan, Placement, ceil_shares, scale_experts
from neuronmoe_plugins.allocation.request import Settings
from neuronmoe_plugins.allocation.totals import Ramp
from neuronmoe_plugins.errors import UserError


class Rule(ABC):
    """From layer scores to experts per layer.

    Attributes:
        options: Options of `neuronmoe allocate` that matter when no total is asked for.
        total_options: Those that matter when one is.
        default_max_experts: `--max-experts` where it is not given; None for no limit.
        heeds_scores: Whether scores say which layers get experts, so that `--placement` can put another rule in place.
    """

    options: ClassVar[frozenset[str]]
    total_options: ClassVar[frozenset[str]]
    default_max_experts: ClassVar[int | None] = 6
    heeds_scores: ClassVar[bool] = True

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
    heeds_scores = False

    def experts(self, scores: Sequence[Fraction], settings: Settings) -> ExpertPlan:
        """`--max-experts` in every layer."""
        return ExpertPlan([settings.required_max_experts()] * len(scores))

    def ramp(self, scores: Sequence[Fraction], settings: Settings) -> Ramp:
        """All at the same pace."""
        return Ramp(0, [Fraction(1)] * len(scores))


class FormRule(Rule):
    """A total alone, shared out so that what a layer has above the minimum is in proportion to its score."""

    options = frozenset()
    total_options = frozenset({"min_experts", "max_experts"})

    def experts(self, scores: Sequence[Fraction], settings: Settings) -> ExpertPlan:
        """Raise `UserError`: a form says where experts are, not how many."""
        raise UserError(f"--strategy {settings.strategy} needs --total-experts N or --max-added-parameters N")

    def ramp(self, scores: Sequence[Fraction], settings: Settings) -> Ramp:
        """From the minimum up, with the score as slope."""
        return Ramp(settings.min_experts, scores)


class TopRule(Rule):
    """A total alone: one new expert in each of the layers that score best, until the total is spent.

    A layer gets its n-th new expert only where its score is at least n times that of the best layer without one.
    """

    options = frozenset()
    total_options = frozenset({"min_experts", "max_experts", "scale"})

    def experts(self, scores: Sequence[Fraction], settings: Settings) -> ExpertPlan:
        """Raise `UserError`: an order of the layers says where experts are, not how many."""
        raise UserError("--placement top needs --total-experts N or --max-added-parameters N, which it spends")

    def ramp(self, scores: Sequence[Fraction], settings: Settings) -> Ramp:
        """From the minimum up, in whole experts."""
        return Ramp(settings.min_experts, scores, whole=True)


PLACEMENTS: dict[Placement, Rule] = {Placement.LINEAR: LinearRule(), Placement.TOP: TopRule()}
