"""Rows of a mixture, one for each choice of a token, sorted by expert; there from tokens, and back to them.

What autograd would do of itself is to add row after row to its token (`index_add`), also in the backward of an
`index_select`. On a GPU that is slow in bfloat16, and its order changes from call to call. Where each choice of a token
has a row, they are gathered and summed instead.

Shapes: values are (tokens, width), rows (rows, width).
"""

from __future__ import annotations

from functools import cached_property, reduce
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

# Devices that have a kernel for it in every torch; those of Apple have none before 2.10.
HAVE_BAGS = ("cpu", "cuda")


class Rows(Protocol):
    """Which token has which rows."""

    @property
    def token_index(self) -> torch.Tensor:
        """(rows,) int64: the token of each row."""

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values of tokens -> those of their rows."""

    def collect(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows -> their sum for each token."""


class AllRows:
    """Every token has a row for every expert: the first expert's rows are the tokens in their order, and so on.

    Args:
        num_tokens: Tokens.
        num_experts: Experts.
        device: Of the rows.
    """

    def __init__(self, num_tokens: int, num_experts: int, device: torch.device) -> None:
        self._shape, self._device = (num_experts, num_tokens), device

    @property
    def token_index(self) -> torch.Tensor:
        """See :class:`Rows`."""
        return torch.arange(self._shape[1], device=self._device).repeat(self._shape[0])

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """See :class:`Rows`."""
        return torch.cat([values] * self._shape[0])

    def collect(self, rows: torch.Tensor) -> torch.Tensor:
        """See :class:`Rows`."""
        return reduce(torch.add, rows.split(self._shape[1]))


class SortedRows:
    """The rows of choices in the order of their experts.

    Args:
        order: (rows,) int64: the place of each row's choice among all, which are (tokens, topk) before they are sorted.
        shape: (tokens, topk); there are fewer rows where some choice is not used.
    """

    def __init__(self, order: torch.Tensor, shape: torch.Size) -> None:
        self.token_index = order // shape[1]
        self._order, self._shape = order, shape

    @cached_property
    def _places(self) -> torch.Tensor | None:
        """(tokens, topk): the row of each choice; None where some choice has none."""
        order, shape = self._order, self._shape
        if len(order) < shape.numel():
            return None
        return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device)).view(shape)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """See :class:`Rows`."""
        if self._places is None:
            return values.index_select(0, self.token_index)
        spread: torch.Tensor = _Spread.apply(values, self.token_index, self._places)  # type: ignore[no-untyped-call]
        return spread

    def collect(self, rows: torch.Tensor) -> torch.Tensor:
        """See :class:`Rows`."""
        if self._places is None:
            return rows.new_zeros(self._shape[0], rows.shape[1]).index_add(0, self.token_index, rows)
        collected: torch.Tensor = _Collect.apply(rows, self.token_index, self._places)  # type: ignore[no-untyped-call]
        return collected


def _gathered(rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    if rows.device.type not in HAVE_BAGS:
        return rows[places].sum(dim=1)
    return F.embedding_bag(places, rows, mode="sum")


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, token_index: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        return values.index_select(0, token_index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _gathered(given, *ctx.saved_tensors), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, token_index: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(token_index)
        return _gathered(rows, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return given.index_select(0, *ctx.saved_tensors), None, None
