"""Routing over the last training steps, and the experts that hardly any of their tokens use."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from neuronmoe_plugins.tuner.counts import FloatArray, RoutingCounts

# An expert is starved when less than this share of its layer's tokens used it in this many steps.
STARVED_SHARE = 0.01
STARVED_STEPS = 200

# How many parts the last steps are kept in; the oldest leaves as a whole.
NUM_PARTS = 10


@dataclass(frozen=True)
class StepCounts:
    """Counts of the steps `first_step` to `last_step`, both included; of none if the last is below the first."""

    first_step: int
    last_step: int
    counts: RoutingCounts

    @property
    def num_steps(self) -> int:
        """How many steps these are."""
        return self.last_step - self.first_step + 1

    def __add__(self, later: StepCounts) -> StepCounts:
        """These steps and those that follow them."""
        return StepCounts(self.first_step, later.last_step, self.counts + later.counts)


class RecentRouting:
    """Counts of the last optimizer steps.

    They are kept in whole windows between two logs: what :meth:`counts` gives is of the fewest windows that hold at
    least `min_steps` steps, or of up to a tenth more, so that memory does not grow with the number of logs.

    Args:
        min_steps: Steps to keep.
        last_step: The step before the first; above 0 after a resumption, which starts with nothing.
    """

    def __init__(self, min_steps: int, last_step: int = 0) -> None:
        self.min_steps = min_steps
        self.last_step = last_step
        self._parts: deque[StepCounts] = deque()

    def add(self, last_step: int, counts: RoutingCounts) -> None:
        """Add the window that ends with `last_step` and starts after the one before."""
        window = StepCounts(self.last_step + 1, last_step, counts)
        if self._parts and (self._parts[-1].num_steps + window.num_steps) * NUM_PARTS <= self.min_steps:
            self._parts[-1] += window
        else:
            self._parts.append(window)
        self.last_step = last_step
        while len(self._parts) > 1 and last_step - self._parts[0].last_step >= self.min_steps:
            self._parts.popleft()

    def counts(self) -> StepCounts:
        """All that is kept, as one."""
        first, *others = self._parts or [StepCounts(self.last_step + 1, self.last_step, RoutingCounts.none())]
        return sum(others, start=first)


@dataclass(frozen=True)
class StarvedExpert:
    """An expert that hardly any token uses.

    Attributes:
        layer: Index of its decoder layer.
        expert: Its index, 0 for the base MLP.
        share: Share of the layer's tokens that used it, by any of their choices.
        new_share: The same of new-language tokens; None where no token is tagged as one.
    """

    layer: int
    expert: int
    share: float
    new_share: float | None


class StarvationMonitor:
    """Finds experts that less than 1 % of their layer's tokens used over 200 steps.

    What counts is the total over the last 200 optimizer steps, all micro-batches and processes of them together, as
    :class:`RecentRouting` keeps them. So it does not matter how often is logged, but that the steps come in whole log
    windows: one of 500 steps is looked at as a whole. The first 200 steps after the start, or after a resumption, are
    only watched.

    Args:
        last_step: The step after which training starts.
    """

    def __init__(self, last_step: int = 0) -> None:
        self._recent = RecentRouting(STARVED_STEPS, last_step)
        self._known: set[tuple[int, int]] = set()

    def add(self, last_step: int, counts: RoutingCounts) -> list[StarvedExpert]:
        """Add a log window that ends with `last_step`.

        Returns:
            Experts that are starved now and were not at the last call; one that recovers can be named again.
        """
        self._recent.add(last_step, counts)
        recent = self._recent.counts()
        if recent.num_steps < STARVED_STEPS:
            return []
        starved = {(expert.layer, expert.expert): expert for expert in starved_experts(recent.counts)}
        new = [expert for place, expert in starved.items() if place not in self._known]
        self._known = set(starved)
        return new


def starved_experts(counts: RoutingCounts) -> list[StarvedExpert]:
    """The experts with less than 1 % of their layer's tokens, by layer and expert."""
    shares, new_shares = (_shares_of_tokens(counts, tokens) for tokens in ("all", "new"))
    is_tagged = counts.num_tokens("new").any()
    found = []
    for place, expert in np.argwhere(shares < STARVED_SHARE).tolist():
        layer, _, num_experts = counts.shapes[place]
        if expert < num_experts and counts.num_tokens()[place]:
            new_share = float(new_shares[place, expert]) if is_tagged else None
            found.append(StarvedExpert(layer, expert, float(shares[place, expert]), new_share))
    return found


def _shares_of_tokens(counts: RoutingCounts, tokens: str) -> FloatArray:
    """(layers, experts): the share of the tokens that use each expert, which is above its share of the choices."""
    return counts.users(tokens) / np.maximum(counts.num_tokens(tokens), 1)[:, None]
