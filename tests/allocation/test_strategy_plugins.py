"""A third party's strategy: a few lines, and totals, scales and comparisons work with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from allocations import allocated, run_allocate, save_scores
from neuronmoe_plugins.allocation.strategies import AllocationStrategy, ShareRule, allocation_strategies
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.hookspecs import hookimpl

PAGE = Path(__file__).parents[2] / "docs" / "allocation.md"


@pytest.fixture
def install(install_plugins: Callable[..., None]) -> Callable[[Any], None]:
    """Install an object as the one third-party plugin."""
    return lambda plugin: install_plugins(SimpleNamespace(name="third", value="third:plugin", load=lambda: plugin))


def plugin_of(strategy: Any) -> Any:
    return SimpleNamespace(register_allocation_strategies=hookimpl(lambda register: register("third", strategy)))


def depth(origin: Any, settings: Any) -> Sequence[float]:
    return [float(layer) for layer in range(origin.num_layers)]


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    return save_scores(tmp_path, {"layer_scores": [1, 1, 1, 1], "hidden_size": 10, "mlp_parameters": [100] * 4})


@pytest.mark.parametrize(
    ("options", "experts"),
    [
        ("", [1, 2, 4, 6]),
        ("--rounding round --max-experts 3", [1, 2, 2, 3]),
        ("--total-experts 10", [1, 2, 3, 4]),
        ("--total-experts 10 --scale log", [1, 2, 3, 4]),
        ("--total-experts 24", [6, 6, 6, 6]),
        ("--max-added-parameters 349", [1, 1, 2, 2]),
    ],
)
def test_the_paper_rule_and_budgets_come_for_free(
    install: Callable[[Any], None], scores: Path, tmp_path: Path, options: str, experts: list[int]
) -> None:
    install(plugin_of(AllocationStrategy(depth)))
    allocation = allocated(tmp_path, scores, "--strategy", "third", *options.split())
    assert allocation.num_experts == experts
    assert (allocation.strategy, allocation.layer_scores) == ("third", [0, 1, 2, 3])


def test_another_rule(install: Callable[[Any], None], scores: Path, tmp_path: Path) -> None:
    install(plugin_of(AllocationStrategy(depth, ShareRule())))
    allocation = allocated(tmp_path, scores, "--strategy", "third", "--budget", "12")
    assert allocation.num_experts == [1, 2, 4, 6]
    result = run_allocate(scores, "--strategy", "third", "--output", tmp_path / "b.yaml")
    assert str(result.exception).startswith("--strategy third needs one of --budget N")


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (depth, "the strategy 'third' of a plugin is no AllocationStrategy but <function depth"),
        (AllocationStrategy(lambda origin, settings: [1.0, 2.0]), "the strategy 'third' scored 2 layers of 4"),
        (AllocationStrategy(lambda origin, settings: [1, 2, -1, 3]), "score of layer 2 is -1"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said(
    install: Callable[[Any], None], scores: Path, tmp_path: Path, strategy: Any, message: str
) -> None:
    install(plugin_of(strategy))
    result = run_allocate(scores, "--strategy", "third", "--output", tmp_path / "a.yaml")
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_the_example_of_the_documentation(install: Callable[[Any], None], analysis: Path, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    namespace: dict[str, Any] = {}
    exec(compile(program, str(PAGE), "exec"), namespace)
    install(SimpleNamespace(**namespace))
    options = ("--strategy", "target-only", "--source", "en", "--target", "el", "--total-experts", "7")
    allocation = allocated(tmp_path, analysis, *options)
    assert allocation.layer_scores == [1, 3, 0, 0, 0]
    assert allocation.num_experts == [2, 2, 1, 1, 1]


def test_the_built_in_strategies_are_those_of_the_documentation() -> None:
    table = PAGE.read_text(encoding="utf-8").split("## A total to keep to")[0]
    named = re.findall(r"^\| `(\w[\w-]+)` \|", table, flags=re.M)
    assert sorted(named) == list(allocation_strategies())
