"""The options of `neuronmoe allocate`: as they were given, and as a strategy sees them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronmoe_plugins.allocation.checks import is_count
from neuronmoe_plugins.allocation.experts import Rounding, check_bounds
from neuronmoe_plugins.allocation.scale import Scale
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.options import option, typed

if TYPE_CHECKING:
    from neuronmoe_plugins.allocation.strategies import AllocationStrategy


class Combine(str, Enum):
    """How neurons of several languages become one count per layer.

    `union`: distinct neurons of source and targets together (paper, Eq. 2). `mean`: those of the source plus the mean
    over the targets of each target's own, the published code's way with three targets; what languages share counts for
    each of them.
    """

    UNION = "union"
    MEAN = "mean"


@dataclass(frozen=True)
class AllocationRequest:
    """What `neuronmoe allocate` is told; None is what it was not told."""

    origin: Path = option("An analysis folder or a scores file.", metavar="DIR_OR_SCORES")
    source: str | None = option("Language the model knows.", None)
    targets: tuple[str, ...] = option("Language to learn; may be repeated.", (), flag="target")
    strategy: str = option(
        "neuron-diversity, source-only, layer-similarity, uniform, or a plugin's.", "neuron-diversity"
    )
    combine: Combine | None = option("union (the default), or mean: source + mean over the targets.", None)
    scale: Scale | None = option(
        "linear (the default); sqrt and log keep one outlier layer from taking nearly all experts.", None
    )
    rounding: Rounding | None = option("floor, the default, gives the paper's lists.", None)
    min_experts: int | None = option("Least experts of a layer, the base MLP included: 1.", None)
    max_experts: int | None = option("Most experts of a layer: 6; no limit for layer-similarity.", None)
    budget: int | None = option("For layer-similarity: what is shared out and rounded up.", None)
    total_experts: int | None = option("Exactly so many in all, base MLPs included.", None)
    max_added_parameters: int | None = option("As many experts as fit into these.", None)


OPTIONAL = ("min_experts", "max_experts", "rounding", "scale", "combine", "budget")


@dataclass(frozen=True)
class Settings:
    """A request with its blanks filled in; fields as in `AllocationRequest`.

    Attributes:
        strategy: Name of the strategy.
        used: The options that have an effect here.
    """

    strategy: str
    source: str | None
    targets: tuple[str, ...]
    used: frozenset[str]
    min_experts: int = 1
    max_experts: int | None = None
    rounding: Rounding = Rounding.FLOOR
    scale: Scale = Scale.LINEAR
    combine: Combine = Combine.UNION
    budget: int | None = None
    total_experts: int | None = None
    max_added_parameters: int | None = None

    def required_max_experts(self) -> int:
        """The most experts of a layer; raises `UserError` if there is no limit."""
        if self.max_experts is None:
            raise UserError(f"--strategy {self.strategy} needs --max-experts N")
        return self.max_experts

    def recorded(self, option: str) -> Any:
        """The option's value for `allocation.yaml`: None where it has no effect."""
        value = getattr(self, option) if option in self.used else None
        return value.value if isinstance(value, Enum) else value


def resolve(request: AllocationRequest, strategy: AllocationStrategy, counted: bool) -> Settings:
    """Fill in what was not given, and refuse what is impossible or would have no effect.

    Args:
        request: The options as given.
        strategy: The strategy.
        counted: Whether scores are counted from an analysis, rather than read from a file.

    Raises:
        UserError: naming the option.
    """
    has_total = _check_totals(request)
    used = strategy.rule.total_options if has_total else strategy.rule.options
    used |= strategy.options if counted else frozenset()
    given = {name: getattr(request, name) for name in OPTIONAL if getattr(request, name) is not None}
    for name in given:
        if name not in used:
            raise UserError(
                f"{typed(name)} has no effect {_why(name, request.strategy, strategy, has_total)}; leave it out"
            )
    _check_count(request, "budget")
    _check_count(request, "max_experts")
    settings = Settings(
        request.strategy,
        request.source,
        request.targets,
        used,
        **({"max_experts": strategy.rule.default_max_experts} | given),
        total_experts=request.total_experts,
        max_added_parameters=request.max_added_parameters,
    )
    check_bounds(settings.min_experts, settings.max_experts)
    return settings


def _check_totals(request: AllocationRequest) -> bool:
    """Whether a total or a number of parameters is to be kept to."""
    if request.total_experts is not None and request.max_added_parameters is not None:
        raise UserError("--total-experts and --max-added-parameters both decide the total; pass one of them")
    for name in ("total_experts", "max_added_parameters"):
        _check_count(request, name)
    return request.total_experts is not None or request.max_added_parameters is not None


def _check_count(request: AllocationRequest, name: str) -> None:
    value = getattr(request, name)
    if value is not None and not is_count(value):
        raise UserError(f"{typed(name)} is {value}; it must be at least 1 and below 2 to the power of 63")


def _why(option: str, name: str, strategy: AllocationStrategy, has_total: bool) -> str:
    """Why an option that was given has no effect."""
    if has_total and option in strategy.rule.options:
        return "with --total-experts or --max-added-parameters, which decide the experts themselves"
    if not has_total and option in strategy.rule.total_options:
        return f"with --strategy {name} unless --total-experts or --max-added-parameters is given"
    if option in strategy.options:
        return "on a scores file, which has one score per layer already"
    return f"with --strategy {name}"
