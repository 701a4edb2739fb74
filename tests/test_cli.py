"""The command line as a whole: its commands and their help, what holds for all of them, and what asking costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from allocations import save_scores
from neuronmoe_plugins.cli import app

ORDER = (
    *("data", "vocabulary", "analyze", "allocate", "recipe", "specialise", "prune", "compress", "graft", "compare"),
    *("report", "study", "export", "convert", "demo", "paths", "plugins", "doctor"),
)
HEAVY = ["torch", "transformers", "peft", "numpy", "pyarrow", "matplotlib", "rich"]


def run(*arguments: object, **environment: str) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)), prog_name="neuronmoe", env=environment)
    assert result.exit_code == 0, result.output
    return result


def test_commands_come_in_the_order_of_the_work() -> None:
    assert tuple(typer.main.get_group(app).commands) == ORDER


@pytest.mark.parametrize("command", [[], ["recipe"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import json, sys\n"
        "from neuronmoe_plugins.cli import main\n"
        "try:\n    main()\n"
        f"finally:\n    print(json.dumps([name for name in {HEAVY} if name in sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command, "--help"], check=True, capture_output=True, text=True)
    assert "Usage: " in done.stdout
    assert json.loads(done.stderr) == []


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("command", ["", *ORDER])
def test_help_is_whole_on_a_narrow_terminal(
    command: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    app([*command.split(), "--help"], prog_name="neuronmoe", standalone_mode=False)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= columns
    group = typer.main.get_group(app)
    shown = group.commands[command] if command else group
    described = " ".join(text.split())
    assert "…" not in text
    assert command or all("".join(own.short_help.split()) in "".join(text.split()) for own in group.commands.values())
    for parameter in shown.params:
        assert all(name in described for name in getattr(parameter, "opts", ()) if name.startswith("--"))
        if getattr(parameter, "is_flag", False):
            assert f"{parameter.opts[-1]} <" not in text, "a switch takes no value"


def test_help_shows_switches_and_values_as_they_are_typed() -> None:
    assert "  --force          Replace data sets of the same names.\n" in run("data", "--help", COLUMNS="80").output
    assert "  --corpus LANGUAGE=SOURCE  " in run("specialise", "--help", COLUMNS="80").output


def test_version() -> None:
    assert run("--version").output == "neuronmoe-plugins 0.1.0\n"


def test_quiet_prints_results_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        monkeypatch.setenv(name, "")  # --quiet sets it, which the other tests need not see
    scores = save_scores(tmp_path, {"layer_scores": [1, 2]})
    command = ("allocate", scores, "--strategy=uniform", "--total-experts=5")
    command = (*command, f"--output={tmp_path / 'allocation.yaml'}")
    loud = run(*command, COLUMNS="80").stdout
    *result, note = loud.splitlines()
    assert note.startswith("Wrote ")
    for flag in ("--quiet", "-q"):
        quiet = run(flag, *command, COLUMNS="80")
        assert (quiet.stdout.splitlines(), quiet.stderr) == (result, "")
    assert run(*command, COLUMNS="80").stdout == loud


@pytest.mark.parametrize(
    ("typed", "completed"), [("neuronmoe al", "allocate"), ("neuronmoe analyze --spl", "--split-sentences")]
)
def test_shells_complete_commands_and_options(typed: str, completed: str) -> None:
    asked = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    assert run(_NEURONMOE_COMPLETE="complete_bash", **asked).stdout == f"{completed}\n"
