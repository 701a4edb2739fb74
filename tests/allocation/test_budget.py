"""Totals and parameters: hit exactly, within the limits, in the order of the scores, whatever the scores."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronmoe_plugins.allocation.experts import BlockShapes
from neuronmoe_plugins.allocation.totals import Limits, Ramp, _ideal_experts, fit_parameters, fit_total
from neuronmoe_plugins.errors import UserError

QUICK = settings(max_examples=150, deadline=None)
SLOPES = st.lists(st.one_of(st.just(0), st.integers(1, 400), st.floats(0, 1e3)), min_size=1, max_size=12)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Ramp, Limits, int]:
    """A ramp, limits, and a total that they allow."""
    slopes = [Fraction(slope) for slope in draw(SLOPES)]
    low = draw(st.integers(1, 3))
    high = draw(st.one_of(st.none(), st.integers(low, 9)))
    most = len(slopes) * (high or 9)
    total = draw(st.integers(len(slopes) * low, max(most, len(slopes) * low)))
    return Ramp(draw(st.sampled_from([0, low])), slopes), Limits(low, high), total


@given(problems())
@QUICK
def test_totals_are_exact_within_limits_and_in_the_order_of_the_slopes(problem: tuple[Ramp, Limits, int]) -> None:
    ramp, limits, total = problem
    experts = fit_total(ramp, limits, total)
    assert sum(experts) == total
    assert min(experts) >= limits.min_experts
    assert limits.max_experts is None or max(experts) <= limits.max_experts
    for slope, count in zip(ramp.slopes, experts, strict=True):
        for other, other_count in zip(ramp.slopes, experts, strict=True):
            assert slope <= other or count >= other_count


@given(problems(), st.randoms(use_true_random=False))
@QUICK
def test_the_order_of_the_layers_decides_ties_alone(problem: tuple[Ramp, Limits, int], random: object) -> None:
    ramp, limits, total = problem
    order = list(range(len(ramp.slopes)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = fit_total(Ramp(ramp.start, [ramp.slopes[layer] for layer in order]), limits, total)
    experts = fit_total(ramp, limits, total)
    ideal = _ideal_experts(*problem)
    # Layers are tied when they lack the same fraction of an expert, as those of a slope do, and now and then others.
    for fraction in {experts % 1 for experts in ideal}:
        tied = [layer for layer in range(len(ideal)) if ideal[layer] % 1 == fraction]
        there = [shuffled[order.index(layer)] - math.floor(ideal[layer]) for layer in tied]
        here = [experts[layer] - math.floor(ideal[layer]) for layer in tied]
        assert sorted(there) == sorted(here)
        assert here == sorted(here, reverse=True)  # ties go to the lower layer


@given(problems(), st.data())
@QUICK
def test_parameters_are_never_exceeded_and_nothing_larger_fits(problem: tuple[Ramp, Limits, int], data: object) -> None:
    limits = Limits(1, 6)
    ramp = Ramp(min(problem[0].start, limits.min_experts), problem[0].slopes)
    num_layers = len(ramp.slopes)
    sizes = data.draw(st.lists(st.integers(1, 50), min_size=num_layers, max_size=num_layers))  # type: ignore[attr-defined]
    most = data.draw(st.integers(1, 2_000))  # type: ignore[attr-defined]
    shapes = BlockShapes(3, sizes)
    costs = {
        total: sum(shapes.added_parameters(fit_total(ramp, limits, total)))
        for total in range(num_layers + 1, 6 * num_layers + 1)
    }
    fitting = [total for total, cost in costs.items() if cost <= most]
    if not fitting:
        with pytest.raises(UserError, match=f"adds {costs[num_layers + 1]}$"):
            fit_parameters(ramp, limits, shapes, most)
        return
    experts = fit_parameters(ramp, limits, shapes, most)
    assert sum(experts) == max(fitting)
    assert experts == fit_total(ramp, limits, max(fitting))


def test_largest_remainder_by_hand() -> None:
    # 7 new ones for 5 : 3 : 1 are 3.9, 2.3 and 0.8.
    assert fit_total(Ramp(1, [Fraction(5), Fraction(3), Fraction(1)]), Limits(1, None), 10) == [5, 3, 2]
    # With at most 3 the first layer gives its surplus to the others, 3 : 1 again, until the second is full too.
    assert fit_total(Ramp(1, [Fraction(5), Fraction(3), Fraction(1)]), Limits(1, 3), 8) == [3, 3, 2]


def test_layers_without_slope_get_what_the_others_cannot_hold() -> None:
    assert fit_total(Ramp(1, [Fraction(7), Fraction(0), Fraction(0)]), Limits(1, 4), 9) == [4, 3, 2]


def test_layers_of_very_different_sizes_are_quick() -> None:
    shapes = BlockShapes(3, [1, 10**6])
    experts = fit_parameters(Ramp(1, [Fraction(1, 10**5), Fraction(1)]), Limits(1, None), shapes, 10**12)
    assert experts == fit_total(Ramp(1, [Fraction(1, 10**5), Fraction(1)]), Limits(1, None), sum(experts))
    assert 10**12 - 2 * 10**6 < sum(shapes.added_parameters(experts)) <= 10**12


def test_a_large_model_is_quick() -> None:
    slopes = [Fraction(layer * 0.1 + 1e-9) for layer in range(126)]
    shapes = BlockShapes(16384, [3 * 16384 * 53248] * 126)
    experts = fit_parameters(Ramp(1, slopes), Limits(1, None), shapes, 10**12)
    assert (
        sum(shapes.added_parameters(experts))
        <= 10**12
        < sum(shapes.added_parameters(experts)) + shapes.mlp_parameters[0]
    )
