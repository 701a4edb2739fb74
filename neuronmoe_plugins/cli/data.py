"""The command that makes training data from raw corpora: `data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def data(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="Says which data sets, from where, and how much.")],
    output: Annotated[Path, typer.Option(help="Folder for the data sets, dataset_info.json and manifest.json.")],
    workers: Annotated[int | None, typer.Option(help="Processes.", show_default="one per core")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace data sets of the same names.")] = False,
) -> None:
    """Draw training, replay, held-out and analysis texts from corpora of any size, none of them twice."""
    from rich.console import Console

    from neuronmoe_plugins.data.prepare import prepare_data

    prepared = prepare_data(spec, output, workers, force)
    for warning in prepared.warnings():
        typer.echo(f"Warning: {warning}", err=True)
    Console().print(_table(prepared.manifest["datasets"]))
    typer.echo(f"Wrote {output}" if prepared.is_new else f"{output} is up to date")


def _table(entries: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    numbers = ("documents", "characters", "bytes", "tokens")
    table = Table()
    for name in ("data set", "language", "role"):
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        counts = ("-" if entry[name] is None else f"{entry[name]:,}" for name in numbers)
        table.add_row(entry["name"], entry["language"], entry["role"], *counts)
    return table
