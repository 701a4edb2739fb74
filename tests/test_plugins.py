"""Plugins: built-ins are there, third parties join by entry point, and trouble names its plugin."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from click.testing import Result
from typer.main import get_group
from typer.testing import CliRunner

from allocations import make_allocation, save_allocation
from neuronmoe_plugins import plugins
from neuronmoe_plugins.cli import make_app
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.hookspecs import HOOKS, hookimpl
from neuronmoe_plugins.neurons.metrics import metrics


class EntryPoint:
    """Stands for an installed plugin's entry point."""

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self.name, self.value, self.load = name, f"{name}_package:plugin", load


class Variance:
    @hookimpl
    def register_metrics(self, register: Callable[[str, Any], None]) -> None:
        register("variance", lambda pooled, labels, num_languages: np.tile(pooled.var(axis=0), (num_languages, 1)))


def test_built_ins() -> None:
    from neuronmoe_plugins.allocation.strategies import allocation_strategies, neuron_diversity

    assert set(metrics()) == {"ap", "attribution", "lape"}
    assert allocation_strategies()["neuron-diversity"] is neuron_diversity


def test_third_party_metric_joins(install_plugins: Callable[..., None]) -> None:
    install_plugins(EntryPoint("variance", Variance))
    assert list(metrics()) == ["ap", "attribution", "lape", "variance"]
    scores = plugins.choose("metric", "variance", metrics())(np.eye(4, dtype=np.float32), np.arange(4), 4)
    assert scores.shape == (4, 4)


def test_name_taken_twice(install_plugins: Callable[..., None]) -> None:
    install_plugins(EntryPoint("one", Variance), EntryPoint("two", Variance))
    with pytest.raises(UserError, match="two plugins register the metric 'variance'"):
        metrics()


def test_plugin_that_cannot_be_imported(install_plugins: Callable[..., None]) -> None:
    install_plugins(EntryPoint("bad", fail))
    with pytest.raises(UserError, match=r"plugin bad \(bad_package:plugin\) cannot be loaded: ImportError: no module"):
        metrics()


def test_plugin_with_an_unknown_hook(install_plugins: Callable[..., None]) -> None:
    install_plugins(EntryPoint("typo", lambda: SimpleNamespace(register_metrix=hookimpl(lambda register: None))))
    with pytest.raises(UserError, match=r"plugin typo .* cannot be loaded.*register_metrix"):
        metrics()


class Greeting:
    @hookimpl
    def register_commands(self, register: Callable[[str, Any], None]) -> None:
        def greet(name: str) -> None:
            """Say hello."""
            typer.echo(f"Hello {name}")

        register("greet", greet)
        register("doctor", greet)

    @hookimpl
    def register_report_sections(self, register: Callable[[str, Any], None]) -> None:
        register("greetings", lambda run: None)


def run_command(*arguments: str) -> Result:
    return CliRunner().invoke(make_app(), arguments, env={"COLUMNS": "300"})


def fail() -> None:
    raise ImportError("no module\nnamed x")


def test_third_party_command_comes_after_the_built_in_ones_and_replaces_none(
    install_plugins: Callable[..., None],
) -> None:
    own = list(get_group(make_app()).commands)
    install_plugins(EntryPoint("greeting", Greeting))
    assert list(get_group(make_app()).commands) == [*own, "greet"]
    assert run_command("greet", "Athens").output == "Hello Athens\n"
    assert "Say hello." in run_command("--help").output
    assert "which hosts are installed" in run_command("doctor", "--help").output
    with pytest.raises(UserError, match="two plugins register the command 'doctor'"):
        plugins.registered("command")


def test_listed_with_what_each_registers(install_plugins: Callable[..., None]) -> None:
    install_plugins(EntryPoint("greeting", Greeting))
    result = run_command("plugins")
    assert result.exit_code == 0
    assert f"neuronmoe-plugins {version('neuronmoe-plugins')}" in result.output
    assert "metric: ap, attribution, lape" in result.output
    assert "allocation strategy: neuron-diversity, source-only, layer-similarity, " in result.output
    assert "command: data, vocabulary, analyze, allocate" in result.output
    assert "command: greet, doctor" in result.output
    assert "report section: greetings" in result.output


def test_an_installed_plugin_is_listed_with_its_package(tmp_path: Path) -> None:
    (tmp_path / "greek.py").write_text("raise RuntimeError('half installed')")
    (tmp_path / "greek_plugin-1.2.dist-info").mkdir()
    (tmp_path / "greek_plugin-1.2.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: greek-plugin\nVersion: 1.2\n"
    )
    (tmp_path / "greek_plugin-1.2.dist-info" / "entry_points.txt").write_text("[neuronmoe_plugins]\ngreek = greek\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "300"}
    command = [sys.executable, "-m", "neuronmoe_plugins", "plugins"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    problem = "plugin greek (greek) cannot be loaded: RuntimeError: half installed; fix or uninstall it"
    assert result.returncode == 1
    assert result.stderr == f"Warning: {problem}\n"
    (row,) = [line for line in result.stdout.splitlines() if "greek-plugin 1.2" in line]
    assert problem in row


def test_a_broken_plugin_leaves_the_commands_that_need_no_plugin(install_plugins: Callable[..., None]) -> None:
    def register(register: Callable[[str, Any], None]) -> None:
        raise KeyError("greet")

    broken = SimpleNamespace(register_commands=hookimpl(register))
    install_plugins(EntryPoint("bad", fail), EntryPoint("broken", lambda: broken), EntryPoint("greeting", Greeting))
    assert "greet" in run_command("--help").output
    assert "Show which hosts" in run_command("doctor", "--help").output
    result = run_command("plugins")
    assert result.exit_code == 1
    assert "plugin bad (bad_package:plugin) cannot be loaded: ImportError: no module named x; fix" in result.output
    assert "plugin broken cannot register a command: KeyError: 'greet'; fix" in result.output
    with pytest.raises(UserError, match="plugin bad"):
        metrics()


def test_the_documented_plugin(install_plugins: Callable[..., None], tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    module = ModuleType("greek_budget")
    exec(program, vars(module))
    install_plugins(EntryPoint("budget", lambda: module))
    save_allocation(tmp_path / "allocation.yaml", [3, 1, 2])
    assert run_command("budget", str(tmp_path / "allocation.yaml")).output == "3 new experts\n"
    make_section = plugins.registered("report section")["budget"]
    section = make_section(SimpleNamespace(allocations={"allocation.yaml": make_allocation([3, 1, 2])}))
    assert section.notes == ["allocation.yaml: 3 new experts"]
    assert make_section(SimpleNamespace(allocations={})) is None
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.M)) == set(HOOKS.values())


def test_asking_for_plugins_imports_no_torch() -> None:
    code = (
        "import sys; from neuronmoe_plugins.allocation.strategies import allocation_strategies;"
        "from neuronmoe_plugins.neurons.metrics import metrics; metrics(); allocation_strategies();"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
