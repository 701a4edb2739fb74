"""Steps run once, in order, and again when something they depend on changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from neuronmoe_plugins.steps import Step, run_steps

QUIET = Console(quiet=True)


@pytest.fixture
def make_steps(tmp_path: Path) -> Callable[..., tuple[list[Step], list[str]]]:
    """Makes steps a, b, c, each of which writes a file, and the list of those that ran."""

    def make(fails: str = "", **parameters: object) -> tuple[list[Step], list[str]]:
        ran: list[str] = []

        def action(name: str) -> Callable[[], None]:
            def run() -> None:
                ran.append(name)
                if name == fails:
                    raise RuntimeError(name)
                (tmp_path / name).write_text(name)

            return run

        steps = [Step(name, action(name), [tmp_path / name], {"value": parameters.get(name, (1, 2))}) for name in "abc"]
        return steps, ran

    return make


def test_finished_steps_are_not_run_again(make_steps: Callable, tmp_path: Path) -> None:
    first, ran_first = make_steps()
    minutes = run_steps(first, tmp_path / "stamps", QUIET)
    second, ran_second = make_steps()

    assert run_steps(second, tmp_path / "stamps", QUIET) == minutes
    assert (ran_first, ran_second) == (["a", "b", "c"], [])
    assert list(minutes) == ["a", "b", "c"]
    assert all(value >= 0 for value in minutes.values())


def test_a_failed_step_is_where_the_next_call_starts(make_steps: Callable, tmp_path: Path) -> None:
    failing, _ = make_steps(fails="b")
    with pytest.raises(RuntimeError):
        run_steps(failing, tmp_path / "stamps", QUIET)
    steps, ran = make_steps()
    run_steps(steps, tmp_path / "stamps", QUIET)

    assert ran == ["b", "c"]


def test_a_changed_step_undoes_the_later_ones_even_if_it_then_fails(make_steps: Callable, tmp_path: Path) -> None:
    run_steps(make_steps()[0], tmp_path / "stamps", QUIET)
    with pytest.raises(RuntimeError):
        run_steps(make_steps(fails="b", b="other")[0], tmp_path / "stamps", QUIET)
    steps, ran = make_steps()
    run_steps(steps, tmp_path / "stamps", QUIET)

    assert ran == ["b", "c"]


def test_a_lost_output_is_made_again(make_steps: Callable, tmp_path: Path) -> None:
    run_steps(make_steps()[0], tmp_path / "stamps", QUIET)
    (tmp_path / "b").unlink()
    steps, ran = make_steps()
    run_steps(steps, tmp_path / "stamps", QUIET)

    assert ran == ["b", "c"]


def test_a_step_without_its_output_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="step 'x' ended without writing"):
        run_steps([Step("x", lambda: None, [tmp_path / "missing"])], tmp_path / "stamps", QUIET)
    assert not (tmp_path / "stamps" / "x.json").exists()
