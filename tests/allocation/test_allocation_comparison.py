"""`--compare`: differences in absolute numbers and per cent, and the two allocations in one figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from allocations import TABLES, run_allocate, save_allocation, save_scores
from neuronmoe_plugins.allocation.comparison import Difference
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


def heights(figure: Path, red: tuple[float, float], blue: tuple[float, float]) -> list[int]:
    """Heights in pixels of the bars whose colour has red and blue within these bounds, from left to right."""
    from matplotlib.image import imread

    pixels = imread(figure)
    mask = (pixels[..., 0] >= red[0]) & (pixels[..., 0] <= red[1])
    mask &= (pixels[..., 2] >= blue[0]) & (pixels[..., 2] <= blue[1]) & (pixels[..., 1] > 0.4)
    columns = mask[: int(0.8 * len(mask))].sum(axis=0)  # above the legend
    edges = np.flatnonzero(np.diff((columns > 20).astype(int)))
    return [int(np.median(columns[start + 1 : end])) for start, end in edges.reshape(-1, 2)]


BLUE, ORANGE = ((0.0, 0.3), (0.6, 0.8)), ((0.9, 1.0), (0.0, 0.2))


def test_the_figure_shows_the_experts_of_each_layer(tmp_path: Path) -> None:
    figure = tmp_path / "figures" / "allocation.png"
    path = save_scores(tmp_path, {"layer_scores": [6, 3, 0, 0, 1]})
    assert run_allocate(path, "--output", tmp_path / "a.yaml", "--figure", figure).exit_code == 0
    bars = heights(figure, *BLUE)
    assert [height / bars[1] for height in bars] == pytest.approx([5 / 2, 1], rel=0.1)
    assert heights(figure, *ORANGE) == []


def test_the_figure_shows_both(tmp_path: Path) -> None:
    figure = tmp_path / "both.png"
    save_allocation(tmp_path / "other.yaml", [2, 4, 1, 3, 1])
    path = save_scores(tmp_path, {"layer_scores": [6, 3, 0, 0, 1]})
    options = ("--compare", tmp_path / "other.yaml", "--figure", figure)
    assert run_allocate(path, "--output", tmp_path / "a.yaml", *options).exit_code == 0
    ours, theirs = heights(figure, *BLUE), heights(figure, *ORANGE)
    assert [height / ours[1] for height in ours] == pytest.approx([5 / 2, 1], rel=0.1)
    assert [height / theirs[0] for height in theirs] == pytest.approx([1, 3, 2], rel=0.1)
