"""The commands that look for language-specific neurons: `analyze` in a model, `specialise` in each of its experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from neuronmoe_plugins.cli.options import takes
from neuronmoe_plugins.cli.output import is_quiet, note, warn
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.options import AnalyzeOptions, SpecialiseOptions

DATA_HELP = "Instead: a folder of `neuronmoe data`, whose data sets of role analysis are the corpora."


def chosen_corpora(
    corpus: list[str] | None,
    data: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
    text_field: str | None = None,
    concepts: Path | None = None,
    of_folder: Callable[[Path], tuple[Any, ...]] | None = None,
) -> tuple[Any, ...]:
    """The corpora (`CorpusSpec`) that a command line names with `--corpus`, or all of a folder with `--data`, if any.

    `of_folder` finds those of a folder: of role analysis, unless given.

    Raises:
        UserError: if both are given, `--data` goes with an option that would have no effect, or they cannot be used.
    """
    if data is None:
        from neuronmoe_plugins.corpora import parse_corpus_specs

        return parse_corpus_specs(corpus) if corpus else ()
    for option, value in (("--corpus", corpus), ("--concepts", concepts)):
        if value:
            raise UserError(f"--data {data} and {option} both say what to analyse; leave one out")
    if text_field is not None:
        raise UserError("--text-field has no effect with --data, whose texts are in the field text; leave it out")
    from neuronmoe_plugins.data.manifest import analysis_corpora

    return (of_folder or analysis_corpora)(data)


@takes(AnalyzeOptions, corpora=chosen_corpora)
def analyze(options: AnalyzeOptions) -> None:
    """Find the neurons of a model that are specific to each language.

    Several processes share the work: torchrun --nproc-per-node N -m neuronmoe_plugins analyze ...
    """
    from neuronmoe_plugins.neurons.analysis import tokenizer_fits
    from neuronmoe_plugins.neurons.analyze import analyze as analyze_neurons
    from neuronmoe_plugins.neurons.processes import Processes

    is_first = Processes.from_environment().is_first
    analysis = analyze_neurons(options, progress=is_first and not is_quiet())
    if is_first:
        warn(analysis.warnings())
        fits = tokenizer_fits(analysis.summary)
        for language, count in analysis.neurons_per_language().items():
            typer.echo(f"{language}: {count} neurons; {fits[language].words_and_bytes()}")
        note(f"Wrote {options.output}")


@takes(SpecialiseOptions, corpora=chosen_corpora)
def specialise(
    options: SpecialiseOptions,
    compare: Annotated[str | None, typer.Option(help="base: also analyse the model without and with it.")] = None,
) -> None:
    """Find what each expert of an extended model specialises in: language-specific neurons, and routing."""
    from rich.console import Console

    from neuronmoe_plugins.neurons.analysis import corpus_warnings
    from neuronmoe_plugins.specialisation import specialise as measure_experts
    from neuronmoe_plugins.specialisation.display import print_specialisation

    if compare not in (None, "base"):
        raise UserError(f"unknown --compare {compare!r}; there is: base")
    console = Console()
    specialisation = measure_experts(options, progress=not is_quiet())
    warn(corpus_warnings(specialisation.settings))
    print_specialisation(console, specialisation, options.output)
    if compare is not None:
        from neuronmoe_plugins.specialisation.display import print_drift
        from neuronmoe_plugins.specialisation.specialise import measure_drift

        print_drift(console, measure_drift(options.analysis(), progress=not is_quiet()), options.output)
    note(f"Wrote {options.output}")
