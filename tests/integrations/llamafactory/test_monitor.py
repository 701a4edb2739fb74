"""Experts that hardly any token uses: over how many steps they are watched, and when they are named."""

from __future__ import annotations

import pytest

from neuronmoe_plugins.integrations.llamafactory.routing import RecentRouting, StarvationMonitor, StarvedExpert
from neuronmoe_plugins.tuner.metrics import KINDS, RoutingCounts

NUM_EXPERTS = 3


def window(steps: int, starved: dict[int, int], kind: str = "untagged", layer: int = 7) -> RoutingCounts:
    """Top-1 counts of 1000 tokens a step, all of expert 0 but those of `starved`: expert -> tokens a step."""
    counts = RoutingCounts.none(((layer, 1, NUM_EXPERTS),))
    others = {expert: starved.get(expert, 300) for expert in (1, 2)}
    for expert, tokens in ({0: 1000 - sum(others.values())} | others).items():
        counts.choices[KINDS.index(kind), 0, 0, expert] = steps * tokens
    return counts


def named(monitor: StarvationMonitor, last_step: int, counts: RoutingCounts) -> list[tuple[int, int]]:
    return [(expert.layer, expert.expert) for expert in monitor.add(last_step, counts)]


@pytest.mark.parametrize("logging_steps", [1, 10, 50, 200])
def test_an_expert_is_named_after_200_steps_however_often_is_logged(logging_steps: int) -> None:
    monitor = StarvationMonitor()
    found = {
        step: named(monitor, step, window(logging_steps, {2: 9})) for step in range(logging_steps, 401, logging_steps)
    }
    assert {step: experts for step, experts in found.items() if experts} == {200: [(7, 2)]}


def test_a_share_of_one_percent_is_enough() -> None:
    monitor = StarvationMonitor()
    assert named(monitor, 500, window(500, {1: 9, 2: 10})) == [(7, 1)]


def test_an_expert_is_named_again_when_it_had_recovered() -> None:
    monitor = StarvationMonitor()
    found = []
    for step in range(100, 1301, 100):
        recovers = 500 < step <= 800
        found += [(step, expert) for _, expert in named(monitor, step, window(100, {} if recovers else {1: 0}))]
    assert found == [(200, 1), (1000, 1)]


def test_short_bursts_do_not_hide_that_an_expert_starves() -> None:
    """One step with many of its tokens, out of 200, leaves it below 1 %."""
    monitor = StarvationMonitor()
    found = [named(monitor, step, window(1, {1: 150 if step == 100 else 0})) for step in range(1, 201)]
    assert found[:-1] == [[]] * 199
    assert found[-1] == [(7, 1)]


def test_only_the_last_steps_count() -> None:
    monitor = StarvationMonitor()
    found = [named(monitor, step, window(1, {} if step <= 1000 else {2: 0})) for step in range(1, 1251)]
    steps = [step for step, experts in enumerate(found, start=1) if experts]
    assert len(steps) == 1
    assert 1190 <= steps[0] <= 1220


def test_after_a_resumption_the_watch_starts_again() -> None:
    monitor = StarvationMonitor(last_step=1000)
    assert named(monitor, 1199, window(199, {1: 0})) == []
    assert named(monitor, 1200, window(1, {1: 0})) == [(7, 1)]


def test_the_share_of_new_language_tokens_is_told() -> None:
    counts = window(200, {1: 0}, kind="old") + window(20, {1: 50}, kind="new")
    (starved,) = StarvationMonitor().add(200, counts)
    assert starved == StarvedExpert(7, 1, pytest.approx(50 * 20 / 220_000), pytest.approx(0.05))


def test_tokens_use_an_expert_by_any_of_their_choices() -> None:
    """Of two choices each: the share of the tokens is twice that of the choices. With two experts nobody starves."""
    counts = RoutingCounts.none(((0, 2, 2), (1, 2, 3), (2, 2, 3)))
    counts.choices[0, 0, :, :2] = [[10_000, 0], [0, 10_000]]
    counts.choices[0, 1] = [[10_000, 0, 0], [0, 9_950, 50]]
    counts.choices[0, 2] = [[10_000, 0, 0], [0, 9_850, 150]]
    assert named(StarvationMonitor(), 200, counts) == [(1, 2)]


@pytest.mark.parametrize(("logging_steps", "first"), [(1, 891), (10, 891), (40, 881), (300, 701)])
def test_recent_windows_hold_at_least_the_steps_asked_for(logging_steps: int, first: int) -> None:
    recent = RecentRouting(110)
    for step in range(logging_steps, 1001, logging_steps):
        recent.add(step, window(logging_steps, {}))
    if step < 1000:
        recent.add(1000, window(1000 - step, {}))
    kept = recent.counts()
    assert kept.last_step == 1000
    assert kept.first_step <= first
    assert kept.first_step >= first - max(11, logging_steps)
    assert kept.counts.num_tokens().tolist() == [1000 * kept.num_steps]
    assert len(recent._parts) <= 20
