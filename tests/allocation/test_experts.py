"""Experts per layer from scores (Eq. 3 and 4), and what is no list of scores."""

from __future__ import annotations

import pytest

from neuronmoe_plugins.allocation.experts import Rounding, scale_experts
from neuronmoe_plugins.errors import UserError


def test_halves_round_to_the_even_number() -> None:
    assert scale_experts([0, 1, 3, 4], 1, 3, Rounding.ROUND).num_experts == [1, 1, 3, 3]


def test_bounds() -> None:
    assert scale_experts([3, 10, 6], 2, 4).num_experts == [2, 4, 2]
    assert scale_experts([3, 10, 6], 3, 3).num_experts == [3, 3, 3]


@pytest.mark.parametrize("steps", [3, 5, 7, 23, 49, 107])
def test_whole_results_are_not_lost_to_floating_point(steps: int) -> None:
    scores = [step * 0.1 for step in (0, steps)] + [float(step) for step in range(steps + 1)]
    assert scale_experts([float(s) for s in range(steps + 1)], 1, 1 + steps).num_experts == list(range(1, steps + 2))
    assert max(scale_experts(scores, 1, 6).num_experts) == 6


@pytest.mark.parametrize("scores", [[5, 5, 5], [0.0, 0.0], [7]])
def test_equal_scores_give_the_minimum_and_say_so(scores: list[float]) -> None:
    plan = scale_experts(scores, 2, 6)
    assert plan.num_experts == [2] * len(scores)
    assert plan.note == f"all {len(scores)} layers score {scores[0]:g}, so each gets the minimum of 2"


@pytest.mark.parametrize(
    ("scores", "bounds", "message"),
    [
        ([], (1, 6), "list of layer scores is empty"),
        ([1.0, float("nan")], (1, 6), "score of layer 1 is nan"),
        ([float("inf"), 1.0], (1, 6), "score of layer 0 is inf"),
        ([1, 10**400], (1, 6), "score of layer 1 is 1000"),
        ([1.0, 2.0, -3.0], (1, 6), r"score of layer 2 is -3\.0"),
        ([1.0, 2.0], (4, 3), "--min-experts 4 is more than --max-experts 3"),
        ([1.0, 2.0], (0, 3), "--min-experts is 0"),
    ],
)
def test_bad_input(scores: list[float], bounds: tuple[int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scale_experts(scores, *bounds)
