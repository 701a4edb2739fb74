"""The strategies that need little, and options that have no effect, contradict each other, or cannot be met."""

from __future__ import annotations

from pathlib import Path

import pytest

from allocations import allocated, run_allocate, save_scores
from neuronmoe_plugins.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "allocation.md"
FILE = {"layer_scores": [9, 4, 0, 1], "layer_similarities": [0.5, 0.5, 0.5, 0.5]}
SHAPES = {"hidden_size": 10, "mlp_parameters": [100, 100, 100, 100]}


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    return save_scores(tmp_path, FILE | SHAPES)


def test_source_only_counts_the_source_and_records_the_targets(analysis: Path, tmp_path: Path) -> None:
    options = ("--strategy", "source-only", "--source", "en")
    allocation = allocated(tmp_path, analysis, *options, "--target", "el")
    assert allocation.layer_scores == [6, 0, 0, 0, 1]
    assert allocation.num_experts == [6, 1, 1, 1, 1]
    assert (allocation.targets, allocation.combine, allocation.neuron_identity) == (["el"], None, "module")
    assert allocated(tmp_path, analysis, *options).num_experts == allocation.num_experts


def test_uniform_gives_every_layer_the_most(analysis: Path, tmp_path: Path) -> None:
    assert allocated(tmp_path, analysis, "--strategy", "uniform").num_experts == [6] * 5
    allocation = allocated(tmp_path, analysis, "--strategy", "uniform", "--max-experts", "3")
    assert allocation.num_experts == [3] * 5
    assert (allocation.scale, allocation.rounding, allocation.neuron_identity) == (None, None, None)
    assert allocated(tmp_path, analysis, "--strategy", "uniform", "--total-experts", "12").num_experts == [
        3,
        3,
        2,
        2,
        2,
    ]


def test_a_total_for_neuron_diversity(scores: Path, tmp_path: Path) -> None:
    # 10 new ones in proportion to 9, 4, 0 and 1 would be 6.4, 2.9, 0 and 0.7: the first layer holds 5.
    allocation = allocated(tmp_path, scores, "--total-experts", "14")
    assert allocation.num_experts == [6, 5, 1, 2]
    assert (allocation.requested_total_experts, allocation.rounding, allocation.scale) == (14, None, "linear")


def test_a_total_is_in_proportion_to_the_score_above_the_lowest(tmp_path: Path) -> None:
    path = save_scores(tmp_path, {"layer_scores": [10, 20, 40]})
    assert allocated(tmp_path, path, "--total-experts", "7").num_experts == [1, 2, 4]


def test_a_number_of_parameters(scores: Path, tmp_path: Path) -> None:
    # Two mixtures of 3 and 2: 3 copies and 5 router rows.
    allocation = allocated(tmp_path, scores, "--max-added-parameters", "350")
    assert (allocation.num_experts, allocation.added_parameters) == ([3, 2, 1, 1], 350)
    assert allocated(tmp_path, scores, "--max-added-parameters", "349").num_experts == [2, 2, 1, 1]
    assert allocation.max_added_parameters == 350


def test_scales_soften_an_outlier(tmp_path: Path) -> None:
    path = save_scores(tmp_path, {"layer_scores": [0, 1, 16, 25]})
    assert allocated(tmp_path, path).num_experts == [1, 1, 4, 6]
    assert allocated(tmp_path, path, "--scale", "sqrt").num_experts == [1, 2, 5, 6]
    # log 2, log 17 and log 26 are 0.21, 0.87 and 1 of the last.
    allocation = allocated(tmp_path, path, "--scale", "log")
    assert (allocation.num_experts, allocation.scale) == ([1, 2, 5, 6], "log")
    assert allocation.layer_scores == [0, 1, 16, 25]
    assert allocated(tmp_path, path, "--scale", "log", "--total-experts", "8").num_experts == [1, 1, 3, 3]


@pytest.mark.parametrize(("scale", "total", "dense"), [("linear", 46, 20), ("sqrt", 57, 11), ("log", 75, 7)])
def test_the_outlier_of_smollm2(tmp_path: Path, scale: str, total: int, dense: int) -> None:
    """The numbers of the documentation."""
    counts = [280, 103, 76, 53, 56, 34, 44, 47, 51, 57, 46, 28, 30, 19, 22]
    counts += [30, 21, 21, 35, 58, 80, 72, 84, 84, 70, 83, 71, 100, 63, 182]
    experts = allocated(tmp_path, save_scores(tmp_path, {"layer_scores": counts}), "--scale", scale).num_experts
    assert (sum(experts), experts.count(1)) == (total, dense)
    assert f"| `{scale}` | {total} | {total - 30} | {dense} |" in PAGE.read_text(encoding="utf-8")


def test_equal_scores_spread_a_total_and_say_so(tmp_path: Path) -> None:
    path = save_scores(tmp_path, {"layer_scores": [3, 3, 3]})
    allocation = allocated(tmp_path, path, "--total-experts", "5")
    assert allocation.num_experts == [2, 2, 1]
    assert allocation.note == "all layers have the same score, so the experts are spread evenly"


ON_SCORES = [
    ("--combine mean --strategy uniform", "--combine has no effect with --strategy uniform; leave it out"),
    ("--combine union --strategy source-only", "--combine has no effect with --strategy source-only"),
    ("--combine mean --strategy layer-similarity --budget 9", "--combine has no effect with --strategy layer-sim"),
    ("--combine mean", "--combine has no effect on a scores file"),
    ("--budget 70", "--budget has no effect with --strategy neuron-diversity"),
    ("--budget 70 --strategy uniform", "--budget has no effect with --strategy uniform"),
    ("--budget 70 --total-experts 8 --strategy layer-similarity", "--budget has no effect with --total-experts or"),
    ("--scale log --strategy uniform", "--scale has no effect with --strategy uniform"),
    ("--scale linear --strategy uniform --total-experts 8", "--scale has no effect with --strategy uniform"),
    ("--rounding floor --total-experts 8", "--rounding has no effect with --total-experts or --max-added-parameters"),
    ("--rounding round --max-added-parameters 900", "--rounding has no effect with --total-experts or --max-added"),
    ("--rounding floor --strategy layer-similarity --budget 9", "--rounding has no effect with --strategy layer-sim"),
    ("--rounding round --strategy uniform", "--rounding has no effect with --strategy uniform"),
    ("--min-experts 1 --strategy uniform", "--min-experts has no effect with --strategy uniform unless --total-exp"),
    ("--total-experts 8 --max-added-parameters 900", "both decide the total; pass one of them"),
    ("--total-experts 0", "--total-experts is 0; it must be at least 1"),
    ("--max-added-parameters -5", "--max-added-parameters is -5; it must be at least 1"),
    ("--budget 0 --strategy layer-similarity", "--budget is 0; it must be at least 1"),
    ("--total-experts 9223372036854775808 --strategy layer-similarity", "below 2 to the power of 63"),
    ("--max-experts 9223372036854775808", "--max-experts is 9223372036854775808; it must be at least 1 and below"),
    ("--total-experts 3", "4 layers of 1 to 6 experts (--min-experts, --max-experts) have 4 to 24 in all"),
    ("--total-experts 25", "--total-experts 25 is not possible: 4 layers of 1 to 6 experts"),
    ("--total-experts 7 --min-experts 2", "have 8 to 24 in all, the original MLPs included"),
    ("--total-experts 3 --strategy layer-similarity", "4 layers of at least 1 experts"),
    ("--max-added-parameters 119", "--max-added-parameters 119 is too small: the smallest allocation here, 5 experts "),
    ("--max-added-parameters 479 --min-experts 2", "8 experts of which 4 new, adds 480"),
    ("--max-added-parameters 900 --max-experts 1", "no layer could have a new expert"),
]


@pytest.mark.parametrize(("options", "message"), ON_SCORES)
def test_refused(scores: Path, tmp_path: Path, options: str, message: str) -> None:
    result = run_allocate(scores, *options.split(), "--output", tmp_path / "a.yaml")
    assert isinstance(result.exception, UserError), result.output
    assert message in str(result.exception)
    assert not (tmp_path / "a.yaml").exists()


def test_parameters_need_shapes(tmp_path: Path) -> None:
    path = save_scores(tmp_path, FILE)
    result = run_allocate(path, "--max-added-parameters", "900", "--output", tmp_path / "a.yaml")
    assert isinstance(result.exception, UserError)
    assert "scores.json has no hidden_size; add it" in str(result.exception)
