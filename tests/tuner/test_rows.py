"""Rows of choices, there and back, beside autograd's own way: `index_select` and `index_add`."""

from __future__ import annotations

import pytest
import torch

from neuronmoe_plugins.tuner.experts.rows import AllRows, Rows, SortedRows

TOKENS, WIDTH = 5, 3


def sorted_rows(topk: int, used: int) -> SortedRows:
    """Of choices in a random order, the first so many."""
    order = torch.randperm(TOKENS * topk, generator=torch.Generator().manual_seed(0))
    return SortedRows(order[:used], torch.Size([TOKENS, topk]))


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(sorted_rows(2, TOKENS * 2), id="sorted"),
        pytest.param(sorted_rows(1, TOKENS), id="one choice"),
        pytest.param(sorted_rows(3, TOKENS * 3 - 4), id="some not used"),
        pytest.param(AllRows(TOKENS, 3, torch.device("cpu")), id="all"),
    ],
)
def test_rows_are_spread_and_collected(rows: Rows) -> None:
    index = rows.token_index
    values = torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    own = torch.randn(len(index), WIDTH, dtype=torch.float64, requires_grad=True)

    assert torch.equal(rows.spread(values), values.index_select(0, index))
    torch.testing.assert_close(rows.collect(own), torch.zeros_like(values).index_add(0, index, own))
    assert torch.autograd.gradcheck(rows.spread, values)
    assert torch.autograd.gradcheck(rows.collect, own)


def test_without_the_kernel_that_some_devices_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, values = sorted_rows(2, TOKENS * 2), torch.randn(TOKENS * 2, WIDTH)
    expected = rows.collect(values)
    monkeypatch.setattr("neuronmoe_plugins.tuner.experts.rows.HAVE_BAGS", ())
    monkeypatch.delattr("torch.nn.functional.embedding_bag")
    assert rows.collect(values).equal(expected)


def test_the_gradient_of_each_token_is_summed_in_one_order() -> None:
    """No `index_add`, whose order a GPU chooses anew in each call, where every choice has a row."""
    rows = sorted_rows(2, TOKENS * 2)
    values = torch.randn(TOKENS, WIDTH, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        rows.collect(rows.spread(values)).sum().backward()
    assert not any("index_add" in event.key for event in profile.key_averages())
