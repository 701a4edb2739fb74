"""Experts per layer, beside LayerMoE's where these are there or asked for (paper, Figure 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from neuronmoe_plugins.allocation.allocate import allocate
from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.allocation.comparison import compare
from neuronmoe_plugins.allocation.display import Bars, Line, draw_experts
from neuronmoe_plugins.allocation.experts import Choose
from neuronmoe_plugins.allocation.request import AllocationRequest
from neuronmoe_plugins.allocation.scores import read_shapes
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import sha256_of
from neuronmoe_plugins.neurons.analysis import layer_counts
from neuronmoe_plugins.report.parts import Picture, Section
from neuronmoe_plugins.report.run import MAIN_ALLOCATION, Run
from neuronmoe_plugins.tables import Table, count

LAYER_SIMILARITY = "layer-similarity"
ASKED = "--layermoe-budget"
HOW_TO_ALLOCATE = (
    "There is no allocation yet: write one with “neuronmoe allocate {analysis} --source LANGUAGE --target LANGUAGE "
    "--output {output}”, then make this report again."
)


@dataclass(frozen=True)
class Shown:
    """What the section shows: all allocations by name, the main one and LayerMoE's among them.

    Attributes:
        allocations: Those of the run, and the computed one if there is one.
        main: Name of the one that the run is about.
        rival: Name of LayerMoE's; None if there is none.
    """

    allocations: Mapping[str, Allocation]
    main: str
    rival: str | None


def experts_section(run: Run) -> Section:
    """The allocation, perhaps LayerMoE's, and what they follow from."""
    heading = "Experts per layer"
    main_name = main_allocation(run)
    if main_name is None:
        if run.layermoe_budget is not None:
            raise UserError(f"{ASKED}: {run.home} has no allocation to compare with; write one or leave the option out")
        note = HOW_TO_ALLOCATE.format(analysis=run.folder, output=run.home / MAIN_ALLOCATION)
        return Section(heading, notes=[note])
    shown = _with_layermoe(run, main_name)
    picture = _picture(shown, _line(run, shown.allocations[main_name]))
    notes = [*_comparison(shown), *map(_budget_note, shown.allocations.items()), *_origin_notes(run, shown)]
    return Section(heading, picture, notes, [_size_table(shown), _layer_table(shown)])


def main_allocation(run: Run) -> str | None:
    """Name of the first allocation that is not LayerMoE's, or else of the first; None if there is none."""
    ours = [name for name, allocation in run.allocations.items() if allocation.strategy != LAYER_SIMILARITY]
    return next(iter([*ours, *run.allocations]), None)


def _with_layermoe(run: Run, main: str) -> Shown:
    """All allocations, with LayerMoE's: one of the run or, if asked for, computed for the languages of the main one."""
    allocations = {name: _with_sizes(run, allocation) for name, allocation in run.allocations.items()}
    chosen, budget = allocations[main], run.layermoe_budget
    theirs = [name for name, allocation in allocations.items() if allocation.strategy == LAYER_SIMILARITY]
    if budget is None:
        return Shown(allocations, main, next((name for name in theirs if name != main), None))
    if theirs:
        raise UserError(f"{ASKED}: {run.home / theirs[0]} is LayerMoE's already; move it away or leave the option out")
    request = AllocationRequest(run.folder, chosen.source, tuple(chosen.targets), LAYER_SIMILARITY, budget=budget)
    try:
        computed = allocate(request)
    except UserError as error:
        raise UserError(f"{ASKED}: LayerMoE's experts cannot be computed: {error}") from error
    name = f"computed here, budget {budget}"
    return Shown({**allocations, name: computed}, main, name)


def _with_sizes(run: Run, allocation: Allocation) -> Allocation:
    """The allocation with the sizes of the analysed model, where it was made without them."""
    shapes = read_shapes(run.folder / "summary.json", run.summary, run.num_layers)
    if allocation.added_parameters is not None or shapes is None:
        return allocation
    return replace(allocation, **shapes.recorded(allocation.expert_rank, allocation.expert_targets))


def _line(run: Run, main: Allocation) -> Line:
    """The distinct neurons of the allocation's languages; without languages, the scores that the allocation has."""
    languages = [language for language in (main.source, *main.targets) if language is not None]
    if len(languages) > 1 and set(languages) <= set(run.languages):
        identity = run.summary.get("neuron_identity", "module")
        counts = layer_counts(run.neurons, languages, run.num_layers, identity)
        return Line(f"distinct neurons of {', '.join(languages)}", "cross-lingual neuron diversity", counts)
    return Line(main.score_name, main.score_name, main.layer_scores)


def _picture(shown: Shown, line: Line) -> Picture:
    """The main allocation, and LayerMoE's."""
    main, total = shown.allocations[shown.main], shown.allocations[shown.main].total_experts
    most = max(main.num_experts)
    layers = [str(layer) for layer, experts in enumerate(main.num_experts) if experts == most]
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(layers)}"
    title = f"{total} experts in {len(main.num_experts)} layers"
    title += f" for {', '.join(main.targets)}" if main.targets else ""
    alt = f"Bar chart of experts over {len(main.num_experts)} decoder layers: {total} in all, "
    alt += f"the most ({most}) in {where}."
    bars, both = [Bars(f"{main.strategy} ({shown.main})", main.num_experts)], ""
    if shown.rival is not None:
        rival = shown.allocations[shown.rival]
        title += f", {rival.total_experts} with LayerMoE"
        alt += f" LayerMoE gives {rival.total_experts} in all."
        bars.append(Bars(f"LayerMoE ({shown.rival})", rival.num_experts))
        both = " (blue) beside LayerMoE’s (grey)"
    red = f"; the red line, on the right axis, shows the {line.label}" if line.values else ""
    caption = f"Bars count the experts of each layer{both}, the original MLP included, on the left axis{red}."
    return Picture(draw_experts(title, bars, line), caption, alt)


def _comparison(shown: Shown) -> list[str]:
    """How much less than LayerMoE the main allocation adds: of all experts, and of what is new."""
    if shown.rival is None:
        return []
    parts = [
        f"{difference.measure} {difference.absolute:+,} ({difference.per_cent:+.1f} %)".replace("-", "−")
        for difference in compare(shown.allocations[shown.main], shown.allocations[shown.rival])
        if difference.absolute is not None and difference.per_cent is not None
    ]
    return [f"{shown.main} against LayerMoE: {', '.join(parts)}."] if parts else []


def _budget_note(named: tuple[str, Allocation]) -> str:
    """What decided how many experts there are in all."""
    name, allocation = named
    if allocation.requested_total_experts is not None:
        reason = f"{allocation.requested_total_experts} experts in all were asked for (--total-experts)"
    elif allocation.max_added_parameters is not None and allocation.choose != Choose.RANK:
        reason = f"as many experts as fit into {allocation.max_added_parameters:,} new parameters were asked for"
        reason += " (--max-added-parameters)"
    elif allocation.budget is not None:
        reason = f"a budget of {allocation.budget} was given, which is shared out in parts that are rounded up"
    else:
        most = "any number" if allocation.max_experts is None else str(allocation.max_experts)
        reason = f"no budget was given; {allocation.strategy} gives each layer {allocation.min_experts} to {most}"
    if allocation.choose == Choose.RANK:
        reason += f"; their rank, {allocation.expert_rank}, is the highest at which the new ones have at most "
        reason += f"{allocation.max_added_parameters:,} parameters (--choose rank)"
    return f"{name}, {allocation.total_experts} experts: {reason}."


def _origin_notes(run: Run, shown: Shown) -> list[str]:
    """What to know about the allocations of the run: their own notes, and scores that are not this analysis'."""
    now = sha256_of([run.folder / "summary.json"])
    notes = []
    for name, allocation in run.allocations.items():
        if allocation.note:
            notes.append(f"{name}: {allocation.note}.")
        if allocation.scores_sha256 not in (None, now):
            notes.append(f"{name} was made from {allocation.scores_from}, which is not this analysis as it is now.")
    if any(allocation.added_parameters is None for allocation in shown.allocations.values()):
        notes += run.lacks("hidden_size", "mlp_parameters")
    return notes


def _size_table(shown: Shown) -> Table:
    """What each allocation adds to the model; the original MLPs are not new."""
    rows = [
        [
            name,
            allocation.strategy,
            f"{allocation.source or '–'} → {', '.join(allocation.targets) or '–'}",
            count(allocation.total_experts),
            count(allocation.new_experts) + allocation.kind_of_new,
            count(sum(experts > 1 for experts in allocation.num_experts)),
            "–" if allocation.added_parameters is None else count(allocation.added_parameters),
        ]
        for name, allocation in shown.allocations.items()
    ]
    header = ["allocation", "strategy", "languages", "experts", "new experts", "mixture layers", "new parameters"]
    return Table("What each allocation adds", header, rows, words=range(3))


def _layer_table(shown: Shown) -> Table:
    main = shown.allocations[shown.main]
    layers = range(len(main.num_experts))
    scores = [f"{score:,.6g}" for score in main.layer_scores] or ["–" for _ in layers]
    added = ["–" for _ in layers] if main.layer_added_parameters is None else map(count, main.layer_added_parameters)
    experts = [list(map(str, allocation.num_experts)) for allocation in shown.allocations.values()]
    header = ["layer", f"{main.score_name} ({shown.main})", *shown.allocations, f"new parameters ({shown.main})"]
    rows = list(zip(map(str, layers), scores, *experts, added, strict=True))
    totals = [count(allocation.total_experts) for allocation in shown.allocations.values()]
    all_added = "–" if main.added_parameters is None else count(main.added_parameters)
    return Table("Experts of each layer, in numbers", header, rows, footer=["all", "", *totals, all_added], folded=True)
