"""The commands that show what came out: `report` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder with analysis/, or an analysis itself.")],
    output: Annotated[
        Path | None, typer.Option(help="The page to write; figures/ goes beside it.", show_default="RUN/report.html")
    ] = None,
) -> None:
    """Draw an analysis and the allocations beside it into one self-contained page."""
    from neuronmoe_plugins.report.page import write_report

    page, *figures = write_report(run, output)
    typer.echo(f"Wrote {page} and {len(figures)} files in {figures[0].parent}")


def compare(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="lm-eval's results files, or folders with one each.")
    ],
    name: Annotated[list[str] | None, typer.Option(help="What to call a model; once for each, in order.")] = None,
    resamples: Annotated[int, typer.Option(help="Of the items, per test.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 42,
    confidence: Annotated[float, typer.Option(help="Of the intervals, between 0 and 1.")] = 0.95,
    json: Annotated[Path | None, typer.Option(help="Also write all numbers into this file.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
) -> None:
    """Show evaluated models in the layout of the paper, and test each one's differences to the first."""
    from rich.console import Console

    from neuronmoe_plugins.comparison import Bootstrap
    from neuronmoe_plugins.comparison import compare as compare_results
    from neuronmoe_plugins.comparison.display import as_record, print_comparison
    from neuronmoe_plugins.comparison.display import markdown as as_markdown
    from neuronmoe_plugins.files import write_json

    comparison = compare_results(results, name or (), Bootstrap(resamples, seed, confidence))
    if json is not None:
        write_json(json, as_record(comparison))
    if markdown:
        typer.echo(as_markdown(comparison))
    else:
        print_comparison(Console(), comparison)
