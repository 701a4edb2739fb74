"""The commands that need no files of the user's: `doctor`, `plugins` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor() -> None:
    """Show which hosts are installed, supported and extended, and what to do about those that are not."""
    from rich.console import Console
    from rich.table import Table

    from neuronmoe_plugins.doctor import examine

    console = Console()
    with console.status("importing the hosts in a fresh process"):
        findings = examine()
    table = Table("host", "version", "supported", "hooked", "what to do")
    words = {True: "yes", False: "[red]no[/red]", None: "-"}
    for finding in findings:
        installed = finding.version is not None
        supported = words[finding.is_supported if installed else None]
        table.add_row(finding.host.name, finding.version or "-", supported, words[finding.hooked], finding.advice)
    console.print(table)
    if not all(finding.healthy for finding in findings):
        raise typer.Exit(1)


def plugins() -> None:
    """List the plugins of this package: where each comes from, what it registers, or why it cannot be loaded."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from neuronmoe_plugins.plugins import describe_plugins

    table = Table("plugin", "package", "registers", show_lines=True)
    described = describe_plugins()
    for plugin, registers in described:
        names = "\n".join(f"{kind}: {', '.join(own)}" for kind, own in registers.items())
        says = names if plugin.problem is None else f"[red]{escape(str(plugin.problem))}[/red]"
        table.add_row(escape(plugin.name), escape(plugin.package), says)
    Console().print(table)
    if any(plugin.problem is not None for plugin, _ in described):
        raise typer.Exit(1)


def demo(
    output: Annotated[Path, typer.Option(help="Folder for all that it writes; if used before, it goes on from there.")],
) -> None:
    """Teach SmolLM2-135M Greek on this machine, from raw text to a table of results: 20 minutes on two CPU cores."""
    from rich.console import Console

    from neuronmoe_plugins.demo import require_demo_packages

    require_demo_packages()
    from neuronmoe_plugins.demo.pipeline import run_demo
    from neuronmoe_plugins.demo.settings import DemoSettings

    run_demo(output, DemoSettings(), Console())
