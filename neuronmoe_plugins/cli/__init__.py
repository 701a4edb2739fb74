"""The `neuronmoe` command: parses arguments, calls one function of the package, prints what came out.

The commands import what they run only when they run, so that `--help` and bad input need not wait for torch.
"""

from __future__ import annotations

import sys

import typer

from neuronmoe_plugins.cli.data import data
from neuronmoe_plugins.cli.experts import allocate
from neuronmoe_plugins.cli.first_steps import demo, doctor
from neuronmoe_plugins.cli.neurons import analyze, specialise
from neuronmoe_plugins.cli.results import compare, report
from neuronmoe_plugins.cli.training import convert, recipe
from neuronmoe_plugins.errors import UserError

# In the order of `neuronmoe --help`, which is that of a run.
COMMANDS = (data, analyze, allocate, specialise, report, recipe, convert, compare, doctor, demo)

app = typer.Typer(
    name="neuronmoe",
    help="Extend an LLM to a new language with neuron-guided experts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line; bad input ends in one line on standard error and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"neuronmoe: error: {error}", err=True)
        sys.exit(2)
