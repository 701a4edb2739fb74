"""From a request to an allocation, for every strategy alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.allocation.experts import (
    Choose,
    ExpertPlan,
    Score,
    check_bounds,
    check_scores,
    rescale,
)
from neuronmoe_plugins.allocation.request import HEEDED_BY_SOME, AllocationRequest, Settings
from neuronmoe_plugins.allocation.rules import PLACEMENTS
from neuronmoe_plugins.allocation.scores import AnalysisFolder, read_origin
from neuronmoe_plugins.allocation.strategies import AllocationOrigin, AllocationStrategy, allocation_strategies
from neuronmoe_plugins.allocation.totals import Limits, equal_counts, fit_parameters, fit_rank, fit_total
from neuronmoe_plugins.blocks import ExpertTargets
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.options import check_options, declared_options, typed
from neuronmoe_plugins.plugins import choose


def allocate(request: AllocationRequest, origin: AllocationOrigin | None = None) -> Allocation:
    """Allocate experts with the strategy that the request names.

    Args:
        request: What is asked for.
        origin: What is in the request's origin, if it has been read.

    Raises:
        UserError: for bad input, and for options that contradict each other or have no effect.
    """
    chosen = choose("strategy", request.strategy, allocation_strategies())
    if not isinstance(chosen, AllocationStrategy):
        problem = f"is no AllocationStrategy but {chosen!r}; update the plugin"
        raise UserError(f"the strategy {request.strategy!r} of a plugin {problem}")
    if request.placement is not None and chosen.rule.heeds_scores:
        chosen = replace(chosen, rule=PLACEMENTS[request.placement])
    origin = origin or read_origin(request.origin)
    settings = resolve(request, chosen, origin.counts_neurons)
    if settings.expert_targets is not ExpertTargets.MLP:
        origin.require_shapes(1, settings.expert_targets)
    origin.check_languages(settings.source, settings.targets)
    scores = chosen.scores(origin, settings)
    if len(scores) != origin.num_layers:
        given = f"scored {len(scores)} layers of {origin.num_layers}; it must score each"
        raise UserError(f"the strategy {request.strategy!r} {given}")
    check_scores(scores)
    plan = _plan(rescale(scores, settings.scale), chosen, settings, origin)
    if origin.shapes is not None and plan.expert_rank is not None:
        origin.shapes.check_rank(plan.num_experts, plan.expert_rank, settings.expert_targets)
    return _record(plan, scores, chosen, settings, origin)


def _plan(
    scores: Sequence[Fraction], strategy: AllocationStrategy, settings: Settings, origin: AllocationOrigin
) -> ExpertPlan:
    """Experts per layer and their rank: what the rule says, or what fits the total or the parameters."""
    if settings.choose is Choose.RANK and settings.max_added_parameters is not None:
        try:
            plan = _plan(scores, strategy, replace(settings, max_added_parameters=None), origin)
        except UserError as error:
            raise UserError(f"--choose rank leaves how many experts there are to other options: {error}") from error
        origin.require_shapes(1, settings.expert_targets)
        assert origin.shapes is not None
        rank, note = fit_rank(plan.num_experts, origin.shapes, settings.max_added_parameters, settings.expert_targets)
        return ExpertPlan(plan.num_experts, _notes(plan.note, note), rank)
    plan = _spread(scores, strategy, settings, origin)
    return _equal(plan, scores, settings, origin) if settings.equal_experts else plan


def _notes(*notes: str | None) -> str | None:
    return "; ".join(filter(None, notes)) or None


def _equal(plan: ExpertPlan, scores: Sequence[Fraction], settings: Settings, origin: AllocationOrigin) -> ExpertPlan:
    """The plan with one count in all layers that do not stay dense, within the same total or parameters."""

    def fits(num_experts: list[int]) -> bool:
        if settings.max_added_parameters is None:
            return settings.total_experts in (None, sum(num_experts))
        shapes = origin.require_shapes(settings.expert_rank, settings.expert_targets)
        return sum(shapes.added_parameters(num_experts)) <= settings.max_added_parameters

    limits = Limits(settings.min_experts, settings.max_experts)
    num_experts = equal_counts(plan.num_experts, scores, limits, fits)
    if len({count for count in num_experts if count > 1}) > 1:
        possible = sum(equal_counts(plan.num_experts, scores, limits, lambda num_experts: True))
        raise UserError(
            f"--equal-experts: no equal counts within the limits sum to --total-experts {settings.total_experts}; "
            f"{possible} is possible"
        )
    planned, equal = (sum(counts) - len(counts) for counts in (plan.num_experts, num_experts))
    left = f"{planned - equal} of {planned} new experts are left over by equal counts" if equal < planned else None
    return replace(plan, num_experts=num_experts, note=_notes(plan.note, left))


def _spread(
    scores: Sequence[Fraction], strategy: AllocationStrategy, settings: Settings, origin: AllocationOrigin
) -> ExpertPlan:
    """Experts per layer as the strategy spreads them."""
    limits = Limits(settings.min_experts, settings.max_experts)
    if settings.total_experts is not None:
        num_experts = fit_total(strategy.rule.ramp(scores, settings), limits, settings.total_experts)
    elif settings.max_added_parameters is not None:
        ramp = strategy.rule.ramp(scores, settings)
        shapes = origin.require_shapes(settings.expert_rank, settings.expert_targets)
        num_experts = fit_parameters(ramp, limits, shapes, settings.max_added_parameters)
    else:
        return replace(strategy.rule.experts(scores, settings), expert_rank=settings.expert_rank)
    if len(set(scores)) == 1 and "scale" in settings.used:
        note = "all layers have the same score, so the experts are spread evenly"
        return ExpertPlan(num_experts, note, settings.expert_rank)
    return ExpertPlan(num_experts, expert_rank=settings.expert_rank)


def _record(
    plan: ExpertPlan,
    scores: Sequence[Score],
    strategy: AllocationStrategy,
    settings: Settings,
    origin: AllocationOrigin,
) -> Allocation:
    identity = origin.neuron_identity if strategy.counts_neurons and isinstance(origin, AnalysisFolder) else None
    expert_targets = None if plan.expert_rank is None else settings.expert_targets.value
    chosen = settings.recorded() | {"min_experts": settings.min_experts, "max_experts": settings.max_experts}
    return Allocation(
        num_experts=plan.num_experts,
        layer_scores=[float(score) for score in scores],
        score_name=strategy.score_name,
        strategy=settings.strategy,
        source=settings.source,
        targets=list(settings.targets),
        requested_total_experts=settings.total_experts,
        max_added_parameters=settings.max_added_parameters,
        neuron_identity=identity,
        expert_rank=plan.expert_rank,
        expert_targets=expert_targets,
        equal_experts=settings.equal_experts,
        scores_from=str(origin.path),
        scores_sha256=origin.sha256,
        note=plan.note,
        **(origin.shapes.recorded(plan.expert_rank, expert_targets) if origin.shapes else {}),
        **chosen,
    )


def resolve(request: AllocationRequest, strategy: AllocationStrategy, counted: bool) -> Settings:
    """Fill in what was not given, and refuse what is impossible or would have no effect.

    Args:
        request: The options as given.
        strategy: The strategy.
        counted: Whether scores are counted from an analysis, rather than read from a file.

    Raises:
        UserError: naming the option.
    """
    chooses_rank = request.choose is Choose.RANK
    fits_experts = request.max_added_parameters is not None and not chooses_rank
    if request.total_experts is not None and fits_experts:
        raise UserError("--total-experts and --max-added-parameters both decide the total; pass one of them")
    if chooses_rank and request.expert_rank is not None:
        raise UserError("--expert-rank has no effect with --choose rank, which finds it; leave it out")
    if request.expert_targets is not None and request.expert_rank is None and not chooses_rank:
        raise UserError("--expert-targets needs --expert-rank R or --choose rank: full copies are of MLPs alone")
    has_total = request.total_experts is not None or fits_experts
    used = strategy.rule.total_options if has_total else strategy.rule.options
    used |= {"placement"} if strategy.rule.heeds_scores else frozenset()
    used |= {"choose"} if request.max_added_parameters is not None else frozenset()
    used |= strategy.options if counted or not strategy.counts_neurons else frozenset()
    given = {each.name: getattr(request, each.name) for each, _ in declared_options(request)}
    given = {name: value for name, value in given.items() if value is not None}
    for name in HEEDED_BY_SOME:
        if name in given and name not in used:
            why = _why(name, request, strategy, has_total)
            raise UserError(f"{typed(name)} has no effect {why}; leave it out")
    check_options(request)
    settings = Settings(**({"max_experts": strategy.rule.default_max_experts} | given), used=used)
    check_bounds(settings.min_experts, settings.max_experts)
    return settings


def _why(option: str, request: AllocationRequest, strategy: AllocationStrategy, has_total: bool) -> str:
    """Why an option that was given has no effect."""
    if option == "choose":
        return "without --max-added-parameters N, which it spends"
    with_rule = f"with --strategy {request.strategy}"
    if request.placement is not None and strategy.rule.heeds_scores:
        with_rule = f"with --placement {request.placement.value}"
    totals = "--total-experts" + ("" if request.choose is Choose.RANK else " or --max-added-parameters")
    if has_total and option in strategy.rule.options:
        return "with --total-experts or --max-added-parameters, which decide the experts themselves"
    if not has_total and option in strategy.rule.total_options:
        return f"{with_rule} unless {totals} is given"
    if option in strategy.options:
        return "on a scores file, which has one score per layer already"
    return with_rule
