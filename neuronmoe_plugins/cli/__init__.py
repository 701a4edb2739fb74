"""The `neuronmoe` command: parses arguments, calls one function of the package, prints what came out.

The commands import what they run only when they run, so that `--help` and bad input need not wait for torch.
"""

from __future__ import annotations

import inspect
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from neuronmoe_plugins.cli.output import set_quiet
from neuronmoe_plugins.errors import UserError, disk_error
from neuronmoe_plugins.plugins import plugin_manager, usable


def make_app() -> typer.Typer:
    """`neuronmoe` with the commands of all plugins that can be used, the built-in ones first."""
    app = typer.Typer(
        name="neuronmoe",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # Plain help: rich's boxes cut long names and texts at 80 columns, and take as long to import as all else.
        rich_markup_mode=None,
    )
    app.callback()(_for_all_commands)
    for name, command in usable("command").items():
        # A short help that is not given is cut, not wrapped.
        app.command(name, short_help=(inspect.getdoc(command) or "").partition("\n\n")[0])(command)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"neuronmoe-plugins {version('neuronmoe-plugins')}")
        raise typer.Exit


def _for_all_commands(
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results and errors alone: no notes, warnings or progress.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Extend an LLM to a new language with neuron-guided experts.

    The commands come in the order of the work.
    """
    set_quiet(quiet)


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
