"""The `neuronmoe` command: parses arguments, calls one function of the package, prints what came out.

The commands import what they run only when they run, so that `--help` and bad input need not wait for torch.
"""

from __future__ import annotations

import sys

import typer

from neuronmoe_plugins.errors import UserError, disk_error
from neuronmoe_plugins.plugins import plugin_manager, usable


def make_app() -> typer.Typer:
    """`neuronmoe` with the commands of all plugins that can be used, the built-in ones first."""
    app = typer.Typer(
        name="neuronmoe",
        help="Extend an LLM to a new language with neuron-guided experts.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for name, command in usable("command").items():
        app.command(name)(command)
    return app


app = make_app()


def main() -> None:
    """Run the command line; bad input, or a disk that is full or read-only, ends in one line and exit code 2."""
    for plugin in plugin_manager().installed:
        if plugin.problem is not None:
            typer.echo(f"Warning: {plugin.problem}", err=True)
    try:
        app()
    except (UserError, OSError) as error:
        typer.echo(f"neuronmoe: error: {disk_error(error) if isinstance(error, OSError) else error}", err=True)
        sys.exit(2)
