"""`--equal-experts`: one count in all layers that do not stay dense, as near to the uneven allocation as there is."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronmoe_plugins.allocation.allocate import allocate
from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.allocation.experts import BlockShapes, Choose
from neuronmoe_plugins.allocation.request import AllocationRequest
from neuronmoe_plugins.allocation.totals import Limits, equal_counts
from neuronmoe_plugins.errors import UserError

SCORES = [9.0, 1.0, 4.0, 2.0, 8.0]
HIDDEN, MLP, WIDTHS = 10, 120, 60


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 2), st.one_of(st.none(), st.integers(5, 7)))
@settings(max_examples=40, deadline=None)
def test_none_is_nearer(planned: list[int], least: int, most: int | None) -> None:
    planned = [max(count, least) for count in planned]
    limits, layers = Limits(least, most), range(len(planned))
    chosen = equal_counts(planned, [Fraction(1)] * len(planned), limits, lambda experts: True)
    possible = [
        [count if layer in mixtures else 1 for layer in layers]
        for count in range(2, (most or sum(planned)) + 1)
        for size in layers
        for mixtures in combinations(layers, size + 1)
    ]
    possible = [each for each in [*possible, [1] * len(planned)] if min(each) >= least and sum(each) <= sum(planned)]
    assert chosen in possible
    apart = {tuple(each): sum(abs(a - b) for a, b in zip(each, planned, strict=True)) for each in possible}
    assert sum(chosen) == max(map(sum, possible))
    assert apart[tuple(chosen)] == min(apart[tuple(each)] for each in possible if sum(each) == sum(chosen))


def made(folder: Path, **options: object) -> Allocation:
    scores = folder / "scores.json"
    sizes = {"hidden_size": HIDDEN, "mlp_parameters": [MLP] * 5, "mlp_widths": [WIDTHS] * 5}
    scores.write_text(json.dumps({"layer_scores": SCORES} | sizes))
    return allocate(AllocationRequest(scores, equal_experts=True, **options))  # type: ignore[arg-type]


def test_the_paper_s_rule_becomes_equal(tmp_path: Path) -> None:
    allocation = made(tmp_path)  # 6, 1, 2, 1, 5 without it
    assert allocation.num_experts == [6, 1, 1, 1, 6]
    allocation.save(tmp_path / "allocation.yaml")
    assert Allocation.load(tmp_path / "allocation.yaml").equal_experts


def test_a_total_is_exact_or_refused(tmp_path: Path) -> None:
    assert made(tmp_path, total_experts=13).num_experts == [3, 1, 3, 3, 3]  # 4, 1, 2, 2, 4 without it
    with pytest.raises(UserError, match=r"sum to --total-experts 18; 17 is possible$"):
        made(tmp_path, total_experts=18)


def test_parameters_are_not_exceeded(tmp_path: Path) -> None:
    most = 7 * (MLP + HIDDEN)
    allocation = made(tmp_path, max_added_parameters=most)
    assert allocation.added_parameters is not None and allocation.added_parameters <= most
    assert len(set(allocation.num_experts) - {1}) == 1


def test_the_rank_is_what_fits_the_equal_counts(tmp_path: Path) -> None:
    allocation = made(tmp_path, max_added_parameters=1000, total_experts=9, choose=Choose.RANK)
    assert allocation.num_experts == [2, 1, 2, 2, 2]
    shapes = BlockShapes(HIDDEN, [MLP] * 5, [WIDTHS] * 5)
    best = max(
        rank
        for rank in (1, 2)
        if sum(shapes.of_rank(rank).added_parameters(allocation.num_experts)) <= 1000  # type: ignore[union-attr]
    )
    assert allocation.expert_rank == best
