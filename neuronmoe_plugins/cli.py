"""The `neuronmoe` command: parses arguments, calls one function of the package, prints what came out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from neuronmoe_plugins.allocation.experts import Rounding
from neuronmoe_plugins.allocation.options import (
    COMBINE_HELP,
    MAX_EXPERTS_HELP,
    SCALE_HELP,
    STRATEGY_HELP,
    AllocationRequest,
    Combine,
)
from neuronmoe_plugins.allocation.scale import Scale
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.sharding import Deepspeed

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
    output: Annotated[Path, typer.Option(help="Folder for neurons.parquet, summary.json and neurons.png.")],
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            help="LANGUAGE=SOURCE, once per language: a .txt, .jsonl (also .gz) or .parquet file, a folder of such, or "
            "hub:OWNER/NAME[:CONFIG][@SPLIT[[:ROWS]]].",
        ),
    ] = None,
    concepts: Annotated[Path | None, typer.Option(help="Instead: a folder of the published code's sentences.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Folder or hub name of a PEFT adapter for the model.")] = None,
    samples: Annotated[int | None, typer.Option(help="Sentences per language.", show_default="500")] = None,
    text_field: Annotated[str | None, typer.Option(help="Field of the texts.", show_default="text")] = None,
    split_sentences: Annotated[
        bool, typer.Option("--split-sentences", help="Split texts into sentences; LANGUAGE is an ISO 639-1 code.")
    ] = False,
    metric: Annotated[str, typer.Option(help="Neuron metric: ap, lape or a plugin's.")] = "ap",
    top_n: Annotated[
        int | None, typer.Option(help="At most so many neurons per language.", show_default="ap 1000, lape all")
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(help="Only neurons that score above this.", show_default="ap 0.5, lape none")
    ] = None,
    components: Annotated[
        str | None, typer.Option(help="Which projections: attention,mlp.", show_default="both")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(help="Over a sentence's tokens: mean or max.", show_default="mean")
    ] = None,
    neuron_identity: Annotated[
        str, typer.Option(help="Neurons of a layer are counted by module and unit, or as published by unit.")
    ] = "module",
    max_tokens: Annotated[int, typer.Option(help="Longer sentences are cut.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Sentences per forward pass.")] = 16,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.", show_default="42")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[
        str | None, typer.Option(help="As in cpu, cuda:0, or auto for all.", show_default="CUDA if there is any")
    ] = None,
    memory_limit: Annotated[
        float | None,
        typer.Option(
            help="Gigabytes of activations kept in memory; more go to a file, from which a stopped run goes on.",
            show_default="half of the free CUDA memory; 0 on a CPU",
        ),
    ] = None,
) -> None:
    """Find the neurons of a model that are specific to each language.

    Several processes share the work: torchrun --nproc-per-node N -m neuronmoe_plugins analyze ...
    """
    from neuronmoe_plugins.neurons.analyze import analyze as analyze_neurons
    from neuronmoe_plugins.neurons.corpora import parse_corpus_specs
    from neuronmoe_plugins.neurons.options import AnalyzeOptions
    from neuronmoe_plugins.neurons.processes import Processes

    options = AnalyzeOptions(
        model=model,
        output=output,
        corpora=parse_corpus_specs(corpus) if corpus else (),
        concepts=concepts,
        adapter=adapter,
        samples=samples,
        text_field=text_field,
        split_sentences=split_sentences,
        top_n=top_n,
        min_score=min_score,
        max_tokens=max_tokens,
        batch_size=batch_size,
        seed=seed,
        metric=metric,
        components=None if components is None else components.split(","),
        pooling=pooling,
        neuron_identity=neuron_identity,
        dtype=dtype,
        device=device,
        memory_limit=memory_limit,
    )
    is_first = Processes.from_environment().is_first
    analysis = analyze_neurons(options, progress=is_first)
    if is_first:
        for warning in analysis.warnings():
            typer.echo(f"Warning: {warning}", err=True)
        for language, count in analysis.neurons_per_language().items():
            typer.echo(f"{language}: {count} neurons")
        typer.echo(f"Wrote {output}")


@app.command()
def allocate(
    origin: Annotated[Path, typer.Argument(metavar="DIR_OR_SCORES", help="An analysis folder or a scores file.")],
    output: Annotated[Path, typer.Option(help="The allocation.yaml to write.")],
    source: Annotated[str | None, typer.Option(help="Language the model knows.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Language to learn; may be repeated.")] = None,
    strategy: Annotated[str, typer.Option(help=STRATEGY_HELP)] = "neuron-diversity",
    combine: Annotated[Combine | None, typer.Option(help=COMBINE_HELP)] = None,
    scale: Annotated[Scale | None, typer.Option(help=SCALE_HELP)] = None,
    rounding: Annotated[Rounding | None, typer.Option(help="floor, the default, gives the paper's lists.")] = None,
    min_experts: Annotated[int | None, typer.Option(help="Least experts of a layer, the base MLP included: 1.")] = None,
    max_experts: Annotated[int | None, typer.Option(help=MAX_EXPERTS_HELP)] = None,
    budget: Annotated[int | None, typer.Option(help="For layer-similarity: what is shared out and rounded up.")] = None,
    total_experts: Annotated[int | None, typer.Option(help="Exactly so many in all, base MLPs included.")] = None,
    max_added_parameters: Annotated[int | None, typer.Option(help="As many experts as fit into these.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Another allocation.yaml to set against this one.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw it, and what it is compared with, into a PNG.")] = None,
) -> None:
    """Decide how many experts each layer gets."""
    from rich.console import Console

    from neuronmoe_plugins.allocation.allocate import allocate as allocate_experts
    from neuronmoe_plugins.allocation.comparison import load_comparable
    from neuronmoe_plugins.allocation.display import print_allocation
    from neuronmoe_plugins.allocation.figure import save_allocation_figure

    targets, bounds = tuple(target or ()), (min_experts, max_experts)
    request = AllocationRequest(
        origin, source, targets, *bounds, rounding, scale, combine, budget, total_experts, max_added_parameters
    )
    allocation = allocate_experts(request, strategy)
    other = None if compare is None else load_comparable(compare, allocation)
    allocation.save(output)
    if figure is not None:
        save_allocation_figure(figure, allocation, other)
    print_allocation(Console(), allocation, other)
    typer.echo(f"Wrote {output}: {allocation.total_experts} experts in {len(allocation.num_experts)} layers")


@app.command()
def specialise(
    model: Annotated[str, typer.Option(help="Folder or hub name of the base model.")],
    adapter: Annotated[str, typer.Option(help="Folder or hub name of its moe adapter.")],
    corpus: Annotated[list[str], typer.Option(help="LANGUAGE=SOURCE, once per language, as for `neuronmoe analyze`.")],
    output: Annotated[Path, typer.Option(help="Folder for specialisation.parquet, .json and the pictures.")],
    threshold: Annotated[float, typer.Option(help="Average precision from which a neuron is specific.")] = 0.9,
    missing: Annotated[str, typer.Option(help="Sentences without a token at an expert: drop, or zero.")] = "drop",
    min_sentences: Annotated[int, typer.Option(help="With fewer at an expert, it is not measured.")] = 10,
    compare: Annotated[str | None, typer.Option(help="base: also analyse the model without and with it.")] = None,
    samples: Annotated[int | None, typer.Option(help="Sentences per language.", show_default="500")] = None,
    text_field: Annotated[str | None, typer.Option(help="Field of the texts.", show_default="text")] = None,
    split_sentences: Annotated[bool, typer.Option("--split-sentences", help="Split texts into sentences.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Longer sentences are cut.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Sentences per forward pass.")] = 16,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.", show_default="42")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="As in cpu, cuda:0, or auto for all.")] = None,
    memory_limit: Annotated[float | None, typer.Option(help="Gigabytes of activations kept in memory.")] = None,
) -> None:
    """Find what each expert of an extended model specialises in: language-specific neurons, and routing."""
    from rich.console import Console

    from neuronmoe_plugins.neurons.analysis import shared_sentence_warnings
    from neuronmoe_plugins.neurons.corpora import parse_corpus_specs
    from neuronmoe_plugins.specialisation import SpecialiseOptions
    from neuronmoe_plugins.specialisation import specialise as measure_experts
    from neuronmoe_plugins.specialisation.display import print_specialisation

    if compare not in (None, "base"):
        raise UserError(f"unknown --compare {compare!r}; there is: base")
    options = SpecialiseOptions(
        model=model,
        adapter=adapter,
        output=output,
        corpora=parse_corpus_specs(corpus),
        threshold=threshold,
        missing=missing,
        min_sentences=min_sentences,
        samples=samples,
        max_tokens=max_tokens,
        batch_size=batch_size,
        seed=seed,
        text_field=text_field,
        split_sentences=split_sentences,
        dtype=dtype,
        device=device,
        memory_limit=memory_limit,
    )
    console = Console()
    specialisation = measure_experts(options, progress=True)
    for warning in shared_sentence_warnings(specialisation.settings["shared_sentences"]["pairs"]):
        typer.echo(f"Warning: {warning}", err=True)
    print_specialisation(console, specialisation)
    if compare is not None:
        from neuronmoe_plugins.specialisation.drift import drift_table, measure_drift

        console.print(drift_table(measure_drift(options.analysis(), progress=True)))
    typer.echo(f"Wrote {output}")


@app.command()
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
    request = RecipeRequest(allocation, model, targets, replays, dataset_dir, output, deepspeed, force)
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
    from neuronmoe_plugins.comparison.display import print_comparison
    from neuronmoe_plugins.comparison.markdown import markdown as as_markdown
    from neuronmoe_plugins.comparison.record import as_record
    from neuronmoe_plugins.files import write_json

    comparison = compare_results(results, name or (), Bootstrap(resamples, seed, confidence))
    if json is not None:
        write_json(json, as_record(comparison))
    if markdown:
        typer.echo(as_markdown(comparison))
    else:
        print_comparison(Console(), comparison)


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
