"""The `neuronmoe` command: parses arguments, calls one function of the package, prints what came out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from neuronmoe_plugins.allocation.experts import Rounding
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.recipes import Deepspeed

app = typer.Typer(
    name="neuronmoe",
    help="Extend an LLM to a new language with neuron-guided experts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def analyze(
    model: Annotated[str, typer.Option(help="Folder or hub name of a causal language model.")],
    corpus: Annotated[list[str], typer.Option(help="LANGUAGE=FILE (.jsonl with `text`, or .txt); once per language.")],
    output: Annotated[Path, typer.Option(help="Folder for neurons.parquet, summary.json and neurons.png.")],
    samples: Annotated[int, typer.Option(help="Sentences per language.")] = 500,
    top_n: Annotated[int, typer.Option(help="At most so many neurons per language.")] = 1000,
    min_score: Annotated[float, typer.Option(help="Only neurons that score above this.")] = 0.5,
    max_tokens: Annotated[int, typer.Option(help="Longer sentences are cut.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Sentences per forward pass.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 42,
    metric: Annotated[str, typer.Option(help="Neuron metric; plugins can add some.")] = "ap",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="As in cpu or cuda:0; default: the GPU if there is one.")] = None,
) -> None:
    """Find the neurons of a model that are specific to each language."""
    from neuronmoe_plugins.neurons.analyze import AnalyzeOptions
    from neuronmoe_plugins.neurons.analyze import analyze as analyze_neurons
    from neuronmoe_plugins.neurons.corpora import parse_corpus_specs

    options = AnalyzeOptions(
        model=model,
        corpora=parse_corpus_specs(corpus),
        output=output,
        samples=samples,
        top_n=top_n,
        min_score=min_score,
        max_tokens=max_tokens,
        batch_size=batch_size,
        seed=seed,
        metric=metric,
        dtype=dtype,
        device=device,
    )
    analysis = analyze_neurons(options, progress=True)
    for language, count in analysis.neurons_per_language().items():
        typer.echo(f"{language}: {count} neurons")
    typer.echo(f"Wrote {output}")


@app.command()
def allocate(
    origin: Annotated[Path, typer.Argument(metavar="DIR_OR_SCORES", help="An analysis folder or a scores file.")],
    output: Annotated[Path, typer.Option(help="The allocation.yaml to write.")],
    source: Annotated[str | None, typer.Option(help="Language the model knows.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Language to learn; may be repeated.")] = None,
    min_experts: Annotated[int, typer.Option(help="Experts of the least specific layer, the base MLP included.")] = 1,
    max_experts: Annotated[int, typer.Option(help="Experts of the most specific layer.")] = 6,
    rounding: Annotated[Rounding, typer.Option(help="floor gives the paper's lists, round its formula.")] = (
        Rounding.FLOOR
    ),
    strategy: Annotated[str, typer.Option(help="Allocation strategy; plugins can add some.")] = "neuron-diversity",
    figure: Annotated[Path | None, typer.Option(help="Also draw it into this PNG.")] = None,
) -> None:
    """Decide how many experts each layer gets."""
    from rich.console import Console

    from neuronmoe_plugins.allocation.display import allocation_table
    from neuronmoe_plugins.allocation.figure import save_allocation_figure
    from neuronmoe_plugins.allocation.strategies import AllocationRequest
    from neuronmoe_plugins.allocation.strategies import allocate as allocate_experts

    request = AllocationRequest(origin, source, tuple(target or ()), min_experts, max_experts, rounding)
    allocation = allocate_experts(request, strategy)
    allocation.save(output)
    if figure is not None:
        save_allocation_figure(figure, allocation)
    Console().print(allocation_table(allocation))
    if allocation.note:
        typer.echo(f"Note: {allocation.note}.")
    typer.echo(f"Wrote {output}: {allocation.total_experts} experts in {len(allocation.num_experts)} layers")


@app.command()
def recipe(
    allocation: Annotated[Path, typer.Option(help="The allocation.yaml of `neuronmoe allocate`.")],
    model: Annotated[str, typer.Option(help="Folder or hub name of the base model.")],
    target_dataset: Annotated[str, typer.Option(help="Data set(s) to learn, as in dataset_info.json: a[,b].")],
    replay_dataset: Annotated[str, typer.Option(help="Data set(s) of the languages to keep: a[,b].")],
    dataset_dir: Annotated[Path, typer.Option(help="Folder of dataset_info.json.")],
    output: Annotated[Path, typer.Option(help="Folder for stage1.yaml and stage2.yaml and the trained adapters.")],
    deepspeed: Annotated[Deepspeed | None, typer.Option(help="Also write this DeepSpeed file, and use it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that differ.")] = False,
) -> None:
    """Write the LLaMA-Factory YAMLs of both training stages."""
    from neuronmoe_plugins.recipe_files import RecipeRequest, write_recipe

    targets, replays = tuple(target_dataset.split(",")), tuple(replay_dataset.split(","))
    request = RecipeRequest(
        allocation, model, targets, replays, dataset_dir, output, deepspeed is Deepspeed.ZERO2, force
    )
    for path in write_recipe(request):
        typer.echo(f"Wrote {path}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Folder of an adapter, published or this package's.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the same adapter in the other format.")],
) -> None:
    """Rewrite an adapter of the published code as this package's, or back; nothing is lost either way."""
    from neuronmoe_plugins.convert import convert as convert_adapter

    written = convert_adapter(source, output)
    typer.echo(f"Wrote {output} in the {written} format")


@app.command()
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


@app.command()
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


def main() -> None:
    """Run the command line; bad input ends in one line on standard error and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"neuronmoe: error: {error}", err=True)
        sys.exit(2)
