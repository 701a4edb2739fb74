"""The commands that show results, `report` and `compare`, or what is installed, and the `demo`, which does it all."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from neuronmoe_plugins.cli.output import is_quiet, note


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder with analysis/, or an analysis itself.")],
    output: Annotated[
        Path | None, typer.Option(help="The page to write; figures/ goes beside it.", show_default="RUN/report.html")
    ] = None,
    layermoe_budget: Annotated[
        int | None,
        typer.Option(help="Compare with LayerMoE's experts, computed from this budget (published: 70 for 28 layers)."),
    ] = None,
) -> None:
    """Draw an analysis and the allocations beside it into one self-contained page."""
    from neuronmoe_plugins.report.page import write_report

    page, *figures = write_report(run, output, layermoe_budget)
    note(f"Wrote {page} and {len(figures)} files in {figures[0].parent}")


def compare(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS", help="lm-eval's results files, or folders with one each.")
    ],
    name: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What to call a model; once for each, in order.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="Resamples of the items, per test.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 42,
    confidence: Annotated[float, typer.Option(help="Confidence of the intervals, between 0 and 1.")] = 0.95,
    json: Annotated[Path | None, typer.Option(help="Also write all numbers into this file.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
) -> None:
    """Show evaluated models in the layout of the paper, and test each one's differences to the first."""
    from rich.console import Console

    from neuronmoe_plugins.comparison import Bootstrap
    from neuronmoe_plugins.comparison import compare as compare_results
    from neuronmoe_plugins.comparison.display import as_record, print_comparison
    from neuronmoe_plugins.comparison.display import markdown as as_markdown
    from neuronmoe_plugins.files import writable_file, write_json, writing

    if json is not None:
        writable_file("--json", json)
    comparison = compare_results(results, name or (), Bootstrap(resamples, seed, confidence))
    if json is not None:
        with writing(f"--json {json}"):
            write_json(json, as_record(comparison))
    if markdown:
        typer.echo(as_markdown(comparison))
    else:
        print_comparison(Console(), comparison)


def study(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="Says which arms, languages, texts and seeds.")],
    output: Annotated[Path, typer.Option(help="Folder for all that it writes; if used before, it goes on from there.")],
    arms: Annotated[
        str | None, typer.Option(metavar="NAME[,NAME...]", help="Only these arms, as on one machine of several.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs at once; each has a GPU for itself, if there are several.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is done and left, and do nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Do again what was done before the spec changed.")] = False,
) -> None:
    """Train models that differ in one thing each, evaluate them, and set them side by side.

    Whatever stops it, the same command goes on.
    """
    from rich.console import Console

    from neuronmoe_plugins.files import writable_folder
    from neuronmoe_plugins.options import at_least_one
    from neuronmoe_plugins.study.display import plan, table
    from neuronmoe_plugins.study.page import write_study_page
    from neuronmoe_plugins.study.results import write_documents, write_results
    from neuronmoe_plugins.study.running import require_fresh, run_study
    from neuronmoe_plugins.study.trainings import load_trainings, only
    from neuronmoe_plugins.tables import print_table

    writable_folder("--output", output)
    at_least_one("--jobs", jobs)
    trainings = load_trainings(spec, output)
    asked = trainings if arms is None else only(trainings, arms.split(","))
    if dry_run:
        shown, line = plan(asked)
        print_table(Console(), shown)
        typer.echo(line)
        return
    if not force:
        require_fresh(asked)
    try:
        run_study(asked, jobs, not is_quiet(), finished=lambda: write_results(trainings, output))
    except KeyboardInterrupt:
        note("Interrupted: the same command goes on from what is done")
        raise
    rows = write_results(trainings, output)
    write_documents(trainings, output)
    page = write_study_page(trainings, rows, output / "report.html")[0]
    print_table(Console(), table(rows), str(output / "results.md"))
    note(f"Wrote {page}, and results.parquet, documents.parquet and results.md beside it")


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show which hosts are installed, supported and extended, why one is not, and what to do; exit code 1 if anything.

    Exit code 0: all hosts that are installed fit together and know `moe`.
    """
    from dataclasses import asdict
    from json import dumps

    from rich.console import Console

    from neuronmoe_plugins.doctor import examine

    with Console(stderr=True, quiet=is_quiet()).status("importing the hosts in a fresh process"):
        diagnosis = examine()
    if json:
        typer.echo(dumps({"healthy": diagnosis.healthy, **asdict(diagnosis)}, indent=2))
    else:
        _print_diagnosis(Console(), diagnosis)
    if not diagnosis.healthy:
        raise typer.Exit(1)


def _print_diagnosis(console: Any, diagnosis: Any) -> None:
    """A table of the hosts, then why, then what to do, each in lines that can be copied."""
    from neuronmoe_plugins.tables import Cell, Line, Table, print_table, print_text

    words: dict[bool | None, Cell] = {True: "yes", False: [Line("no", "red")], None: "-"}
    rows: list[list[Cell]] = []
    for each in diagnosis.hosts:
        name = each.host if each.distribution == each.host else f"{each.host} ({each.distribution})"
        supported = "untested" if each.version and each.supported is None else words[each.supported]
        rows.append([name, each.version or "-", supported, words[each.hooked]])
    print_table(console, Table("", ["host", "version", "supported", "hooked"], rows, words=range(4)))
    for each in diagnosis.hosts:
        for reason in each.reasons:
            print_text(console, f"{each.host}: {reason}" + (f"; {each.advice}" if each.version is None else ""))
    for conflict in diagnosis.conflicts:
        print_text(console, conflict)
    todo = [each.advice for each in diagnosis.hosts if not each.healthy] + [diagnosis.advice]
    lines = [f"What to do: {line}" for line in dict.fromkeys(todo) if line]
    for line in lines or (["Nothing to do."] if diagnosis.healthy else []):
        print_text(console, line)


def plugins() -> None:
    """List the plugins of this package: where each comes from, what it registers, or why it cannot be loaded."""
    from rich.console import Console

    from neuronmoe_plugins.plugins import describe_plugins
    from neuronmoe_plugins.tables import Cell, Line, Table, print_table

    rows: list[list[Cell]] = []
    described = describe_plugins()
    for plugin, registers in described:
        says = [Line(f"{kind}: {', '.join(own)}") for kind, own in registers.items()]
        if plugin.problem is not None:
            says = [Line(str(plugin.problem), "red")]
        rows.append([plugin.name, plugin.package, says])
    header = ["plugin", "package", "registers"]
    print_table(Console(), Table("", header, rows, words=range(3), rules=range(len(rows))))
    if any(plugin.problem is not None for plugin, _ in described):
        raise typer.Exit(1)


class Shared(str, Enum):
    """Folders that other programs read."""

    TASKS = "tasks"
    RECIPES = "recipes"


def paths(
    folder: Annotated[Shared | None, typer.Argument(metavar="FOLDER", help="Print this one alone.")] = None,
) -> None:
    """Print where the lm-eval tasks and the ready-made recipes lie, with DeepSpeed's and accelerate's files."""
    from neuronmoe_plugins.files import shared_folder

    found = {Shared.TASKS: shared_folder("lm_eval_tasks"), Shared.RECIPES: shared_folder("recipes")}
    if folder is not None:
        typer.echo(found[folder])
        return
    for shared, path in found.items():
        typer.echo(f"{shared.value:8} {path}")


def demo(
    output: Annotated[Path, typer.Option(help="Folder for all that it writes; if used before, it goes on from there.")],
    vocabulary: Annotated[
        int | None,
        typer.Option(min=1, metavar="TOKENS", help="Extend the vocabulary by so many Greek tokens first; 1000 fit."),
    ] = None,
) -> None:
    """Teach SmolLM2-135M Greek on this machine, from raw text to a table of results: 20 minutes on two CPU cores."""
    from rich.console import Console

    from neuronmoe_plugins.demo import require_demo_packages
    from neuronmoe_plugins.files import writable_folder

    writable_folder("--output", output)
    require_demo_packages()
    from neuronmoe_plugins.demo.pipeline import DemoSettings, run_demo

    run_demo(output, DemoSettings(vocabulary=vocabulary), Console())
