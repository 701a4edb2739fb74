"""`--placement top`: experts go to the best layers one by one, against the sorted list of all averages."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocations import allocated, run_allocate, save_scores
from neuronmoe_plugins.allocation.experts import BlockShapes
from neuronmoe_plugins.allocation.totals import Limits, Ramp, fit_parameters, fit_total
from neuronmoe_plugins.errors import UserError

QUICK = settings(deadline=None, max_examples=60)
SCORES = st.lists(st.integers(1, 60), min_size=1, max_size=10)
TOP = ("--placement", "top")


def top(scores: list[int], total: int, least: int = 1, most: int | None = None) -> list[int]:
    return fit_total(Ramp(least, [Fraction(score) for score in scores], whole=True), Limits(least, most), total)


@pytest.mark.parametrize(
    ("scores", "new", "expected"),
    [
        ([7, 9, 4, 8], 1, [1, 2, 1, 1]),
        ([7, 9, 4, 8], 3, [2, 2, 1, 2]),
        ([7, 9, 4, 8], 4, [2, 3, 1, 2]),  # 9 is more than twice 4
        ([7, 9, 5, 8], 4, [2, 2, 2, 2]),  # and not twice 5
        ([10, 5, 4], 2, [3, 1, 1]),  # exactly twice the next will do
        ([5, 5, 5], 2, [2, 2, 1]),  # of equal layers the lower
        ([6, 0, 0], 8, [6, 3, 2]),  # at most 6: the rest goes to layers that score nothing
        ([0, 0, 0], 4, [3, 2, 2]),
    ],
)
def test_by_hand(tmp_path: Path, scores: list[int], new: int, expected: list[int]) -> None:
    path = save_scores(tmp_path, {"layer_scores": scores})
    allocation = allocated(tmp_path, path, *TOP, "--total-experts", len(scores) + new)
    assert allocation.num_experts == expected
    assert (allocation.placement, allocation.rounding, allocation.scale) == ("top", None, "linear")


@given(SCORES, st.integers(0, 40), st.integers(1, 3), st.sampled_from([None, 5]))
@QUICK
def test_new_experts_are_the_best_of_all_averages(scores: list[int], new: int, least: int, most: int | None) -> None:
    new = min(new, len(scores) * (5 - least)) if most else new
    found = top(scores, least * len(scores) + new, least, most)
    averages = [
        (Fraction(score, nth), score, -layer)
        for layer, score in enumerate(scores)
        for nth in range(1, (most or new + least) - least + 1)
    ]
    chosen = [-layer for _, _, layer in sorted(averages, reverse=True)[:new]]
    assert found == [least + chosen.count(layer) for layer in range(len(scores))]


@given(SCORES, st.data())
@QUICK
def test_parameters_are_spent_to_the_last_expert(scores: list[int], data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=len(scores), max_size=len(scores)))
    shapes, ramp = BlockShapes(2, sizes), Ramp(1, [Fraction(score) for score in scores], whole=True)
    most = data.draw(st.integers(sum(shapes.added_parameters(top(scores, len(scores) + 1))), 1_500))
    found = fit_parameters(ramp, Limits(1, 6), shapes, most)
    assert found == top(scores, sum(found), most=6)
    assert sum(shapes.added_parameters(found)) <= most
    if sum(found) < 6 * len(scores):
        assert sum(shapes.added_parameters(top(scores, sum(found) + 1, most=6))) > most


@pytest.mark.parametrize(
    ("shape", "layers"),
    [("early", range(10)), ("late", range(20, 30)), ("middle", range(10, 20)), ("ends", [*range(5), *range(25, 30)])],
)
def test_a_form_fills_its_best_layers(tmp_path: Path, shape: str, layers: range) -> None:
    path = save_scores(tmp_path, {"layer_scores": [1] * 30})
    allocation = allocated(tmp_path, path, "--strategy", "shape", "--shape", shape, *TOP, "--total-experts", "40")
    assert allocation.num_experts == [2 if layer in layers else 1 for layer in range(30)]


def test_the_linear_rule_for_a_strategy_with_another(tmp_path: Path) -> None:
    path = save_scores(tmp_path, {"layer_similarities": [1, 0.5, 0.25]})
    options = ("--strategy", "layer-similarity", "--placement")
    allocation = allocated(tmp_path, path, *options, "linear")
    assert allocation.num_experts == [1, 2, 6]  # Eq. 4 for 1, 2 and 4
    assert (allocation.placement, allocation.max_experts, allocation.rounding) == ("linear", 6, "floor")
    assert allocated(tmp_path, path, *options, "top", "--total-experts", "5").num_experts == [1, 1, 3]


def test_it_is_quick_with_very_many(tmp_path: Path) -> None:
    found = top([3, 2, 1] * 40, 10**12 + 5)
    assert sum(found) == 10**12 + 5
    assert max(found) - min(found) == pytest.approx(10**12 / 240 * 2, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--placement top needs --total-experts N or --max-added-parameters N, which it spends"),
        ("--total-experts 3", "--total-experts 3 is not possible: 4 layers of 1 to 6 experts"),
        ("--total-experts 25", "have 4 to 24 in all, the original MLPs included"),
        ("--max-added-parameters 119", "too small: the smallest allocation here, 5 experts of which 1 new, adds 120"),
        ("--total-experts 8 --rounding floor", "--rounding has no effect with --placement top; leave it out"),
        ("--scale log", "--scale has no effect with --placement top unless --total-experts or --max-added-parameters"),
        ("--total-experts 8 --strategy uniform", "--placement has no effect with --strategy uniform; leave it out"),
        (
            "--strategy layer-similarity --budget 9 --total-experts 8",
            "--budget has no effect with --placement top; leave it out",
        ),
    ],
)
def test_refused_in_one_line(tmp_path: Path, options: str, message: str) -> None:
    sizes = {"hidden_size": 10, "mlp_parameters": [100] * 4}
    path = save_scores(tmp_path, {"layer_scores": [9, 4, 0, 1], "layer_similarities": [0.5] * 4} | sizes)
    result = run_allocate(path, *TOP, *options.split(), "--output", tmp_path / "a.yaml")
    assert isinstance(result.exception, UserError), result.output
    assert message in str(result.exception)
    assert not (tmp_path / "a.yaml").exists()
