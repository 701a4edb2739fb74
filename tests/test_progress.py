"""How far a long command is, where nothing can be redrawn."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from neuronmoe_plugins import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that have passed; a test moves them on."""
    passed = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: passed[0])
    return passed


def test_a_log_gets_a_line_every_half_minute_with_the_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    for item in progress.track(range(10), "Scoring [neurons]", shown=True):
        clock[0] = 9.0 * (item + 1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["Scoring [neurons]: 40 %, 54 s left", "Scoring [neurons]: 80 %, 18 s left"]
    assert list(progress.track(range(3), "Quick", shown=True)) == [0, 1, 2]
    for _ in progress.track(range(3), "Hidden", shown=False):
        clock[0] += 1000
    assert capsys.readouterr().err == ""


def test_what_was_done_before_does_not_count_for_the_pace(clock: list[float]) -> None:
    """A study that goes on has most of its steps done, each of which took minutes."""
    stream = io.StringIO()
    with progress.Progress(Console(file=stream)) as bars:
        task = bars.add_task("study", total=100)
        bars.update(task, completed=90)
        for completed in (90, 91, 91, 92):
            clock[0] += 150
            bars.update(task, completed=completed)
        assert bars.tasks[0].time_remaining == 8 * 300, "what a terminal's bar shows"
    assert stream.getvalue().splitlines() == [
        "study: 90 %",
        "study: 91 %, 45 min left",
        "study: 91 %, 45 min left",
        "study: 92 %, 40 min left",
    ]


def test_a_number_that_only_grows_is_told_as_it_is(clock: list[float]) -> None:
    stream = io.StringIO()
    with progress.Progress(Console(file=stream)) as bars:
        task = bars.add_task("read", total=None)
        clock[0] = 40
        bars.update(task, advance=7, description="read: 7")
    assert stream.getvalue() == "read: 7\n"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5300, "88 min"), (7321, "2 h 2 min")]
)
def test_durations_are_rounded(seconds: float, said: str) -> None:
    assert progress._duration(seconds) == said
