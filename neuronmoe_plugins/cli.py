"""The `neuronmoe` command: parses arguments, calls one function of the package, prints what came out."""

from __future__ import annotations

import sys

import typer

from neuronmoe_plugins.errors import UserError

app = typer.Typer(
    name="neuronmoe",
    help="Extend an LLM to a new language with neuron-guided experts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; bad input ends in one line on standard error and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"neuronmoe: error: {error}", err=True)
        sys.exit(2)
