"""The command line as a whole: which commands there are, and that asking for them costs no heavy import."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer

from neuronmoe_plugins.cli import app

ORDER = [
    "data",
    "analyze",
    "allocate",
    "specialise",
    "report",
    "recipe",
    "convert",
    "compare",
    "doctor",
    "plugins",
    "paths",
    "demo",
]
HEAVY = ["torch", "transformers", "peft", "numpy", "pyarrow", "matplotlib"]


def test_commands_come_in_the_order_of_a_run() -> None:
    assert list(typer.main.get_group(app).commands) == ORDER


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
