"""Experts in the form of the depth: exact totals, closed forms, seeds that draw the same again."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocations import allocated, run_allocate, save_scores
from neuronmoe_plugins.allocation.allocate import allocate
from neuronmoe_plugins.allocation.experts import Shape
from neuronmoe_plugins.allocation.request import AllocationRequest
from neuronmoe_plugins.allocation.strategies import shape_scores
from neuronmoe_plugins.allocation.totals import Limits, Ramp, fit_total
from neuronmoe_plugins.errors import UserError

LAYERS = st.integers(1, 40)
QUICK = settings(deadline=None, max_examples=50)


def experts(shape: Shape, num_layers: int, total: int, seed: int | None = None, most: int | None = None) -> list[int]:
    return fit_total(Ramp(1, shape_scores(shape, num_layers, seed)), Limits(1, most), total)


def scores_of(tmp_path: Path, num_layers: int, **sizes: object) -> Path:
    """Scores that no form looks at."""
    return save_scores(tmp_path, {"layer_scores": [7] * num_layers} | sizes)


@pytest.mark.parametrize(
    ("shape", "new", "expected"),
    [
        ("ends", 6, [3, 2, 2, 3]),  # 4 : 2 : 2 : 4
        ("middle", 8, [2, 4, 4, 2]),  # 1 : 3 : 3 : 1
        ("early", 10, [5, 4, 3, 2]),  # 4 : 3 : 2 : 1
        ("late", 10, [2, 3, 4, 5]),  # 1 : 2 : 3 : 4
        ("late", 1, [1, 1, 1, 2]),
        ("middle", 1, [1, 2, 1, 1]),  # of layers that lack the same, the lower
        ("even", 8, [3, 3, 3, 3]),
        ("even", 2, [2, 1, 1, 2]),
    ],
)
def test_by_hand(tmp_path: Path, shape: str, new: int, expected: list[int]) -> None:
    options = ("--strategy", "shape", "--shape", shape, "--total-experts", str(4 + new))
    allocation = allocated(tmp_path, scores_of(tmp_path, 4), *options)
    assert allocation.num_experts == expected
    assert (allocation.strategy, allocation.shape, allocation.seed) == ("shape", shape, None)
    assert (allocation.requested_total_experts, allocation.max_experts, allocation.scale) == (4 + new, 6, None)


@given(st.sampled_from(Shape), LAYERS, st.data())
@QUICK
def test_totals_are_kept_and_forms_recognised(shape: Shape, num_layers: int, data: st.DataObject) -> None:
    total = data.draw(st.integers(num_layers, 6 * num_layers))
    found = experts(shape, num_layers, total, seed=0, most=6)
    assert sum(found) == total
    assert 1 <= min(found) <= max(found) <= 6
    half = found[: (num_layers + 1) // 2]
    if shape in (Shape.ENDS, Shape.MIDDLE):
        # Symmetric but for one expert, which the lower of two equal layers gets.
        assert all(found[layer] - found[-1 - layer] in (0, 1) for layer in range(num_layers // 2))
        assert half == sorted(half, reverse=shape is Shape.ENDS)
    if shape in (Shape.EARLY, Shape.LATE):
        assert found == sorted(found, reverse=shape is Shape.EARLY)
    if shape is Shape.EVEN:
        assert max(found) - min(found) <= 1
    if shape is Shape.RANDOM:
        assert sorted(shape_scores(shape, num_layers, 0)) == list(range(1, num_layers + 1))


@given(LAYERS)
@QUICK
def test_the_forms_belong_together(num_layers: int) -> None:
    ends, middle, early, late = (shape_scores(Shape(name), num_layers) for name in ("ends", "middle", "early", "late"))
    assert early == late[::-1]
    assert {one + other for one, other in zip(ends, middle, strict=True)} == {Fraction(num_layers + 1)}
    assert {one + other for one, other in zip(early, late, strict=True)} == {Fraction(num_layers + 1)}


@given(st.integers(0, 5), st.integers(0, 5), st.integers(1, 3))
@QUICK
def test_what_is_left_over_is_evenly_spaced(fine: int, coarse: int, each: int) -> None:
    num_layers, left = 2 ** max(fine, coarse) + 1, 2 ** min(fine, coarse) + 1
    found = experts(Shape.EVEN, num_layers, each * num_layers + left)
    if left == num_layers:
        assert found == [each + 1] * num_layers
    else:
        step = (num_layers - 1) // (left - 1)
        assert found == [each + (layer % step == 0) for layer in range(num_layers)]


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 9, 16, 30])
def test_more_evenly_spread_experts_take_none_away(num_layers: int) -> None:
    before = [1] * num_layers
    for total in range(num_layers + 1, 3 * num_layers + 1):
        after = experts(Shape.EVEN, num_layers, total)
        assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0] * (num_layers - 1) + [1]
        before = after


def test_seeds_draw_the_same_again_and_others_something_else(tmp_path: Path) -> None:
    path = scores_of(tmp_path, 28)
    options = ("--strategy", "shape", "--shape", "random", "--total-experts", "84", "--seed")
    first, again, other = (allocated(tmp_path, path, *options, seed) for seed in ("0", "0", "1"))
    assert first == again
    assert (first.seed, other.seed, first.total_experts, other.total_experts) == (0, 1, 84, 84)
    drawn = {tuple(shape_scores(Shape.RANDOM, 28, seed)) for seed in range(100)}
    assert len(drawn) == 100
    # What the generator's random() gives is promised to stay the same.
    assert shape_scores(Shape.RANDOM, 5, 0) == [5, 4, 2, 1, 3]


def test_parameters_of_experts_of_low_rank(tmp_path: Path) -> None:
    """A rank of 2 costs 120 parameters in each layer, and a router row 10."""
    options = ("--strategy", "shape", "--shape", "late")
    path = scores_of(tmp_path, 4, hidden_size=10, mlp_parameters=[100] * 4, mlp_widths=[60] * 4)
    rank = ("--expert-rank", "2")
    allocation = allocated(tmp_path, path, *options, *rank, "--max-added-parameters", "420")
    assert (allocation.num_experts, allocation.added_parameters) == ([1, 2, 2, 2], 420)
    assert allocated(tmp_path, path, *options, "--total-experts", "7", *rank).added_parameters == 420
    without = scores_of(tmp_path, 4, hidden_size=10, mlp_parameters=[100] * 4)
    assert allocated(tmp_path, without, *options, "--total-experts", "7", *rank).added_parameters is None
    request = AllocationRequest(without, strategy="shape", shape=Shape.LATE, max_added_parameters=420, expert_rank=2)
    with pytest.raises(UserError, match=r"needs hidden_size, mlp_parameters and mlp_widths: .* has no mlp_widths"):
        allocate(request)


def test_parameters_and_an_analysis_as_origin(analysis: Path, tmp_path: Path) -> None:
    path = scores_of(tmp_path, 4, hidden_size=10, mlp_parameters=[100] * 4)
    options = ("--strategy", "shape", "--shape", "late")
    allocation = allocated(tmp_path, path, *options, "--max-added-parameters", "359")
    assert (allocation.num_experts, allocation.added_parameters) == ([1, 1, 2, 2], 240)
    assert allocated(tmp_path, path, *options, "--max-added-parameters", "360").num_experts == [1, 2, 2, 2]
    languages = ("--source", "en", "--target", "el")
    allocation = allocated(tmp_path, analysis, *options, *languages, "--total-experts", "10")
    assert allocation.num_experts == [1, 2, 2, 2, 3]
    assert (allocation.source, allocation.targets, allocation.neuron_identity) == ("en", ["el"], None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--strategy shape --total-experts 8",
            "--strategy shape needs --shape: ends, middle, early, late, even",
        ),
        ("--strategy shape --shape ends", "--strategy shape needs --total-experts N or --max-added-parameters N"),
        ("--strategy shape --shape random --total-experts 8", "--shape random needs --seed N"),
        ("--strategy shape --shape late --seed 1 --total-experts 8", "--seed has no effect with --shape late; leave"),
        ("--strategy shape --shape random --seed -1 --total-experts 8", "--seed is -1; it must be a whole number from"),
        ("--shape ends", "--shape has no effect with --strategy neuron-diversity; leave it out"),
        ("--seed 1 --strategy uniform", "--seed has no effect with --strategy uniform; leave it out"),
        ("--strategy shape --shape ends --total-experts 8 --scale log", "--scale has no effect with --strategy shape"),
        ("--strategy shape --shape ends --min-experts 2", "--min-experts has no effect with --strategy shape unless"),
        (
            "--strategy shape --shape ends --total-experts 3",
            "4 layers of 1 to 6 experts (--min-experts, --max-",
        ),
    ],
)
def test_refused_in_one_line(tmp_path: Path, options: str, message: str) -> None:
    result = run_allocate(scores_of(tmp_path, 4), *options.split(), "--output", tmp_path / "a.yaml")
    assert isinstance(result.exception, UserError), result.output
    assert message in str(result.exception)
    assert len(str(result.exception).splitlines()) == 1
    assert not (tmp_path / "a.yaml").exists()
