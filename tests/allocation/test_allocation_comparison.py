"""`--compare`: differences in absolute numbers and per cent, and the two allocations in one figure."""

from __future__ import annotations

from pathlib import Path

import pytest

from allocations import TABLES, make_allocation, run_allocate, save_allocation, save_scores
from neuronmoe_plugins.allocation.comparison import Difference
from neuronmoe_plugins.allocation.display import draw_allocations
from neuronmoe_plugins.errors import UserError

LLAMA = {"hidden_size": 3072, "mlp_parameters": [3 * 3072 * 8192] * 28}
GREEK = TABLES["table2_llama32_3b_greek"]


def rows(output: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines()]


def test_49_experts_for_84_are_a_third_of_the_new_ones(tmp_path: Path) -> None:
    similarities = [1 / (experts - 0.5) for experts in GREEK["layermoe"]]
    path = save_scores(tmp_path, {"layer_similarities": similarities} | LLAMA)
    layermoe = tmp_path / "layermoe.yaml"
    run_allocate(path, "--strategy", "layer-similarity", "--budget", 70, "--output", layermoe)
    path = save_scores(tmp_path, {"layer_scores": TABLES["table5_unique_neurons_en_el"]} | LLAMA)
    result = run_allocate(path, "--compare", layermoe, "--output", tmp_path / "a.yaml")
    shown = rows(result.output)
    assert ["experts", "49", "84", "-35", "-41.7 %"] in shown
    assert ["new experts", "21", "56", "-35", "-62.5 %"] in shown
    assert ["added parameters", "1,585,539,072", "4,228,116,480", "-2,642,577,408", "-62.5 %"] in shown


def test_what_is_not_known_is_not_compared(tmp_path: Path) -> None:
    save_allocation(tmp_path / "dense.yaml", [1, 1])
    path = save_scores(tmp_path, {"layer_scores": [1, 2], "hidden_size": 2, "mlp_parameters": [5, 5]})
    shown = rows(run_allocate(path, "--compare", tmp_path / "dense.yaml", "--output", tmp_path / "a.yaml").output)
    assert ["experts", "7", "2", "+5", "+250.0 %"] in shown
    assert ["new experts", "5", "0", "+5", "–"] in shown
    assert ["added parameters", "37", "unknown", "–", "–"] in shown


def test_differences() -> None:
    assert (Difference("experts", 3, 4).absolute, Difference("experts", 3, 4).per_cent) == (-1, -25)
    assert (Difference("experts", None, 4).absolute, Difference("experts", None, 4).per_cent) == (None, None)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"layer_scores": [1, 2, 3]}, "other.yaml is for 3 layers, this allocation for 2; compare allocations for one"),
        ({"layer_scores": [1, 2], "hidden_size": 3, "mlp_parameters": [5, 5]}, "model with MLPs of another size"),
        ({"layer_scores": [1, 2], "hidden_size": 2, "mlp_parameters": [5, 6]}, "model with MLPs of another size"),
    ],
)
def test_another_model(tmp_path: Path, other: dict[str, object], message: str) -> None:
    run_allocate(save_scores(tmp_path, other), "--output", tmp_path / "other.yaml")
    path = save_scores(tmp_path, {"layer_scores": [1, 2], "hidden_size": 2, "mlp_parameters": [5, 5]})
    result = run_allocate(path, "--compare", tmp_path / "other.yaml", "--output", tmp_path / "a.yaml")
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not (tmp_path / "a.yaml").exists()


def test_nothing_to_compare_with(tmp_path: Path) -> None:
    path = save_scores(tmp_path, {"layer_scores": [1, 2]})
    result = run_allocate(path, "--compare", tmp_path / "none.yaml", "--output", tmp_path / "a.yaml")
    assert isinstance(result.exception, UserError)
    assert "none.yaml does not exist" in str(result.exception)


def test_the_figure_shows_both_and_the_scores() -> None:
    allocations = [make_allocation([6, 3, 1], [6, 3, 0.5]), make_allocation([2, 4, 1], [])]
    axes, scores = draw_allocations(*allocations).axes
    assert [[bar.get_height() for bar in bars] for bars in axes.containers] == [[6, 3, 1], [2, 4, 1]]
    lefts = [[bar.get_x() for bar in bars] for bars in axes.containers]
    assert all(one + 0.4 == pytest.approx(two) for one, two in zip(*lefts, strict=True))
    (line,) = scores.get_lines()
    assert list(line.get_ydata()) == [6, 3, 0.5]
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "neuron-diversity (this)", "neuron-diversity (other)", "layer score"
    ]  # fmt: skip
    assert axes.get_title().splitlines() == [
        "neuron-diversity, en, el: 10 experts in 3 layers (7 new)",
        "neuron-diversity, en, el: 7 experts in 3 layers (4 new)",
    ]
    assert (axes.get_xlabel(), axes.get_ylabel(), scores.get_ylabel()) == ("decoder layer", "experts", "layer score")


@pytest.mark.parametrize("compare", [False, True])
def test_the_figure_is_written(tmp_path: Path, compare: bool) -> None:
    save_allocation(tmp_path / "other.yaml", [2, 4, 1, 3, 1])
    path = save_scores(tmp_path, {"layer_scores": [6, 3, 0, 0, 1]})
    options = ("--compare", tmp_path / "other.yaml") if compare else ()
    figure = tmp_path / "figures" / "allocation.png"
    assert run_allocate(path, "--output", tmp_path / "a.yaml", "--figure", figure, *options).exit_code == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
