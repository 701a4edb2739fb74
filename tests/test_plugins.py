"""Plugins: built-ins are there, third parties join by entry point, and trouble names its plugin."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from neuronmoe_plugins import plugins
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.hookspecs import hookimpl
from neuronmoe_plugins.neurons.metrics import metrics


class EntryPoint:
    """Stands for an installed plugin's entry point."""

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self.name, self.value, self.load = name, f"{name}_package:plugin", load


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def install(*installed: EntryPoint) -> None:
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: installed)
        plugins.plugin_manager.cache_clear()

    yield install
    plugins.plugin_manager.cache_clear()


class Variance:
    @hookimpl
    def register_metrics(self, register: Callable[[str, Any], None]) -> None:
        register("variance", lambda pooled, labels, num_languages: np.tile(pooled.var(axis=0), (num_languages, 1)))


def test_built_ins() -> None:
    from neuronmoe_plugins.allocation.strategies import allocation_strategies, neuron_diversity

    assert set(metrics()) == {"ap", "lape"}
    assert allocation_strategies()["neuron-diversity"] is neuron_diversity


def test_third_party_metric_joins(install: Callable[..., None]) -> None:
    install(EntryPoint("variance", Variance))
    assert list(metrics()) == ["ap", "lape", "variance"]
    scores = plugins.choose("metric", "variance", metrics())(np.eye(4, dtype=np.float32), np.arange(4), 4)
    assert scores.shape == (4, 4)


def test_name_taken_twice(install: Callable[..., None]) -> None:
    install(EntryPoint("one", Variance), EntryPoint("two", Variance))
    with pytest.raises(UserError, match="two plugins register the metric 'variance'"):
        metrics()


def test_plugin_that_cannot_be_imported(install: Callable[..., None]) -> None:
    def fail() -> None:
        raise ImportError("no module named x")

    install(EntryPoint("bad", fail))
    with pytest.raises(UserError, match=r"plugin bad \(bad_package:plugin\) cannot be loaded: ImportError: no module"):
        metrics()


def test_plugin_with_an_unknown_hook(install: Callable[..., None]) -> None:
    install(EntryPoint("typo", lambda: SimpleNamespace(register_metrix=hookimpl(lambda register: None))))
    with pytest.raises(UserError, match=r"plugin typo .* cannot be loaded.*register_metrix"):
        metrics()


def test_asking_for_plugins_imports_no_torch() -> None:
    code = (
        "import sys; from neuronmoe_plugins.allocation.strategies import allocation_strategies;"
        "from neuronmoe_plugins.neurons.metrics import metrics; metrics(); allocation_strategies();"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
