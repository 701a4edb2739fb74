"""Rules that turn layer scores into experts, with or without a total to keep to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from neuronmoe_plugins.allocation.budget import Ramp
from neuronmoe_plugins.allocation.experts import ExpertPlan, scale_experts
from neuronmoe_plugins.allocation.similarity import ceil_shares
from neuronmoe_plugins.errors import UserError

if TYPE_CHECKING:
    from neuronmoe_plugins.allocation.options import Settings


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
