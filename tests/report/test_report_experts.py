"""The section on experts: Figure 1 of the paper, honest sizes, and what it says when something is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paper_analysis import COUNTS, LEFT_OUT, TABLES, legend_of, save_paper_allocation, write_analysis

from allocations import save_allocation
from neuronmoe_plugins.allocation.allocate import allocate
from neuronmoe_plugins.allocation.request import AllocationRequest
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.report.allocation_section import experts_section
from neuronmoe_plugins.report.parts import Section
from neuronmoe_plugins.report.run import Run, read_run

LAYERS = len(COUNTS["en"])
NEURONMOE = TABLES["table2_llama32_3b_greek"]["neuronmoe"]
LAYERMOE = TABLES["table2_llama32_3b_greek"]["layermoe"]


def heights(section: Section) -> list[list[float]]:
    """Those of each group of bars."""
    assert section.picture is not None
    return [[bar.get_height() for bar in group] for group in section.picture.figure.axes[0].containers]


def test_bars_and_line_are_those_of_figure_1(make_run: Callable[..., Run], tmp_path: Path) -> None:
    save_paper_allocation(tmp_path / "allocation.yaml")
    section = experts_section(make_run(layermoe_budget=70))
    assert heights(section) == [NEURONMOE, LAYERMOE]
    assert section.picture is not None
    (line,) = section.picture.figure.axes[1].lines
    assert list(line.get_ydata()) == TABLES["table5_unique_neurons_en_el"]


def test_an_allocation_by_layer_similarity_takes_the_place_of_the_computed_one(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    write_analysis(tmp_path / "analysis")
    request = AllocationRequest(tmp_path / "analysis", "en", ("el",), "layer-similarity", budget=100)
    by_similarity = allocate(request)
    by_similarity.save(tmp_path / "a.yaml")
    save_paper_allocation(tmp_path / "b.yaml")
    section = experts_section(read_run(tmp_path))
    assert legend_of(section)[:2] == ["neuron-diversity (b.yaml)", "LayerMoE (a.yaml)"]
    assert heights(section)[1] == by_similarity.num_experts != LAYERMOE
    (tmp_path / "b.yaml").unlink()
    assert legend_of(experts_section(read_run(tmp_path))) == ["layer-similarity (a.yaml)", "distinct neurons of en, el"]


def test_all_allocations_are_in_the_tables_and_the_default_one_in_the_figure(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    save_allocation(tmp_path / "a.yaml", [2] * LAYERS)
    save_paper_allocation(tmp_path / "allocation.yaml")
    section = experts_section(make_run())
    assert legend_of(section)[0] == "neuron-diversity (allocation.yaml)"
    names = ["allocation.yaml", "a.yaml"]
    assert [row[0] for row in section.tables[0].rows] == names
    assert section.tables[1].footer == ["all", "", "49", "56", "1,585,539,072"]


def test_allocations_say_what_is_to_be_known(make_run: Callable[..., Run], tmp_path: Path) -> None:
    analysis = tmp_path / "analysis"
    make_run(neurons=[])
    allocate(AllocationRequest(analysis, "en", ("el",))).save(tmp_path / "allocation.yaml")
    equal = f"allocation.yaml: all {LAYERS} layers score 0, so each gets the minimum of 1."
    assert list(experts_section(read_run(tmp_path)).notes)[1:] == [equal]
    summary = (analysis / "summary.json").read_text(encoding="utf-8")
    (analysis / "summary.json").write_text(summary + " ", encoding="utf-8")
    stale = f"allocation.yaml was made from {analysis}, which is not this analysis as it is now."
    assert list(experts_section(read_run(tmp_path)).notes)[1:] == [equal, stale]


def test_layermoe_is_compared_with_only_where_asked(make_run: Callable[..., Run], tmp_path: Path) -> None:
    save_paper_allocation(tmp_path / "allocation.yaml")
    section = experts_section(make_run())
    assert heights(section) == [NEURONMOE]
    assert "LayerMoE" not in repr(section)
    asked = experts_section(replace(read_run(tmp_path), layermoe_budget=70))
    assert [row[0] for row in asked.tables[0].rows] == ["allocation.yaml", "computed here, budget 70"]
    save_allocation(tmp_path / "other.yaml", [2] * LAYERS, strategy="layer-similarity")
    with pytest.raises(UserError, match=r"--layermoe-budget: .*other\.yaml is LayerMoE's already; move it away"):
        experts_section(replace(read_run(tmp_path), layermoe_budget=70))
    for name in ("allocation", "other"):
        (tmp_path / f"{name}.yaml").unlink()
    with pytest.raises(UserError, match=r"--layermoe-budget: .* has no allocation to compare with"):
        experts_section(replace(read_run(tmp_path), layermoe_budget=70))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no budget was given; neuron-diversity gives each layer 1 to 6."),
        ({"total_experts": 49}, "49 experts in all were asked for (--total-experts)."),
        (
            {"max_added_parameters": 1_000_000_000},
            "as many experts as fit into 1,000,000,000 new parameters were asked for (--max-added-parameters).",
        ),
        (
            {"strategy": "layer-similarity", "budget": 70},
            "a budget of 70 was given, which is shared out in parts that are rounded up.",
        ),
    ],
)
def test_it_is_said_where_a_budget_comes_from(
    make_run: Callable[..., Run], tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    make_run()
    allocation = allocate(AllocationRequest(tmp_path / "analysis", "en", ("el",), **options))
    allocation.save(tmp_path / "allocation.yaml")
    notes = experts_section(read_run(tmp_path)).notes
    assert f"allocation.yaml, {allocation.total_experts} experts: {said}" in notes


def test_experts_of_a_rank_that_was_chosen(make_run: Callable[..., Run], tmp_path: Path) -> None:
    chosen = {"expert_rank": 64, "choose": "rank", "max_added_parameters": 10**8}
    save_allocation(tmp_path / "allocation.yaml", [2] * LAYERS, **chosen)
    section = experts_section(make_run())
    assert section.tables[0].rows[0][4] == f"{LAYERS} of rank 64"
    assert (
        "allocation.yaml, 56 experts: no budget was given; neuron-diversity gives each layer 1 to 2; their rank, 64, "
        "is the highest at which the new ones have at most 100,000,000 parameters (--choose rank)."
    ) in section.notes


def test_without_an_allocation_the_section_says_how_to_get_it(make_run: Callable[..., Run], tmp_path: Path) -> None:
    section = experts_section(make_run())
    assert section.picture is None
    (note,) = section.notes
    assert f"neuronmoe allocate {tmp_path / 'analysis'} --source LANGUAGE" in note
    assert f"--output {tmp_path / 'allocation.yaml'}" in note


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_input_similarity": LEFT_OUT}, "LayerMoE's experts cannot be computed: "),
        ({"mlp_input_similarity": None}, "LayerMoE's experts cannot be computed: "),
        ({"languages": ["en", "xx", "tr", "hu"]}, "knows no language 'el'"),
    ],
)
def test_a_comparison_without_what_it_needs_is_refused(
    make_run: Callable[..., Run], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save_paper_allocation(tmp_path / "allocation.yaml")
    languages = changes.pop("languages", list(COUNTS))
    run = make_run(languages=languages, layermoe_budget=70, **changes)
    with pytest.raises(UserError, match=f"^--layermoe-budget: .*{message}"):
        experts_section(run)
    assert heights(experts_section(replace(run, layermoe_budget=None))) == [NEURONMOE]


def test_an_analysis_without_sizes_is_named(make_run: Callable[..., Run], tmp_path: Path) -> None:
    save_paper_allocation(tmp_path / "allocation.yaml")
    notes = experts_section(make_run(hidden_size=LEFT_OUT, mlp_parameters=LEFT_OUT)).notes
    assert any("without “hidden_size”, “mlp_parameters”; run “neuronmoe" in note for note in notes), notes


def test_allocation_without_languages_or_scores(make_run: Callable[..., Run], tmp_path: Path) -> None:
    path = tmp_path / "allocation.yaml"
    save_paper_allocation(path)
    path.write_text(path.read_text(encoding="utf-8").replace("source: en", "source: null"), encoding="utf-8")
    assert legend_of(experts_section(make_run())) == ["neuron-diversity (allocation.yaml)", "layer score"]
    save_allocation(path, [2] * LAYERS)
    path.write_text(path.read_text(encoding="utf-8").replace("source: en", "source: null"), encoding="utf-8")
    section = experts_section(read_run(tmp_path))
    assert legend_of(section) == ["neuron-diversity (allocation.yaml)"]
    assert section.tables[1].rows[0][1] == "–"
