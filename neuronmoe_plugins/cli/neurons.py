"""The commands that look for language-specific neurons: `analyze` in a model, `specialise` in each of its experts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuronmoe_plugins.cli.corpora import DATA_HELP, chosen_corpora
from neuronmoe_plugins.errors import UserError


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
    data: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
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
    from neuronmoe_plugins.neurons.options import AnalyzeOptions
    from neuronmoe_plugins.neurons.processes import Processes

    options = AnalyzeOptions(
        model=model,
        output=output,
        corpora=chosen_corpora(corpus, data, text_field, concepts),
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


def specialise(
    model: Annotated[str, typer.Option(help="Folder or hub name of the base model.")],
    adapter: Annotated[str, typer.Option(help="Folder or hub name of its moe adapter.")],
    output: Annotated[Path, typer.Option(help="Folder for specialisation.parquet, .json and the pictures.")],
    corpus: Annotated[
        list[str] | None, typer.Option(help="LANGUAGE=SOURCE, once per language, as for `neuronmoe analyze`.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
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
    from neuronmoe_plugins.specialisation import SpecialiseOptions
    from neuronmoe_plugins.specialisation import specialise as measure_experts
    from neuronmoe_plugins.specialisation.display import print_specialisation

    if compare not in (None, "base"):
        raise UserError(f"unknown --compare {compare!r}; there is: base")
    options = SpecialiseOptions(
        model=model,
        adapter=adapter,
        output=output,
        corpora=chosen_corpora(corpus, data, text_field),
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
        from neuronmoe_plugins.specialisation.display import print_drift
        from neuronmoe_plugins.specialisation.drift import measure_drift

        print_drift(console, measure_drift(options.analysis(), progress=True))
    typer.echo(f"Wrote {output}")
