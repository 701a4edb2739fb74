"""Which experts are dropped, by losses that are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from neuronmoe_plugins.pruning.choosing import choose_experts
from neuronmoe_plugins.pruning.leaving_out import Measured, Place

BEFORE = np.array([2.0, 4.0])


def measured(costs: dict[Place, tuple[float, float]], unused: Sequence[Place] = ()) -> Measured:
    """Of two languages: what each expert costs alone, as shares of the loss."""
    alone = {place: BEFORE * (1 + np.array(cost)) for place, cost in costs.items()}
    return Measured(BEFORE, np.array([10, 10]), dict.fromkeys(costs, BEFORE), alone, unused)


def adding(costs: dict[Place, tuple[float, float]], factor: float, asked: list[list[Place]]) -> Callable[..., object]:
    """Measures experts together: what they cost alone, added up, times the factor."""

    def together(places: Sequence[Place]) -> np.ndarray:
        asked.append(list(places))
        return BEFORE * (1 + factor * np.sum([costs[place] for place in places], axis=0))

    return together


@pytest.mark.parametrize(
    ("bound", "factor", "dropped", "tries"),
    [
        (0.03, 1, [(0, 2), (1, 1), (0, 1)], 2),
        (0.03, 1.3, [(0, 2), (1, 1)], 2),  # together they cost more than each: the second does not go
        (0.004, 1, [(0, 2)], 0),
        (0, 1, [(0, 2)], 0),
        (9, 0, [(0, 2), (1, 1), (0, 1), (2, 1)], 3),  # the last one of all stays
    ],
)
def test_drops_what_costs_least_within_the_bound(bound: float, factor: float, dropped: list[Place], tries: int) -> None:
    costs = {(0, 1): (0.01, 0.015), (0, 2): (0.0, 0.0), (1, 1): (0.014, -0.5), (2, 1): (0.1, 0.0), (2, 2): (0.2, 0.0)}
    asked: list[list[Place]] = []
    assert choose_experts(measured(costs, [(0, 2)]), bound, adding(costs, factor, asked)) == dropped
    assert len(asked) == tries
    assert all(places[0] == (0, 2) for places in asked)


def test_the_last_one_stays_where_no_token_chose_any() -> None:
    costs = {(0, 1): (0.0, 0.0), (1, 1): (0.0, 0.0)}
    assert choose_experts(measured(costs, [*costs]), 0, adding(costs, 1, [])) == [(0, 1)]
