"""The commands on the way to a training, from `data` to `recipe`, and what rewrites adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from neuronmoe_plugins.allocation.request import AllocationRequest
from neuronmoe_plugins.cli.options import takes
from neuronmoe_plugins.cli.output import is_quiet, note, warn
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import writable_file, writing
from neuronmoe_plugins.recipe_files import RecipeRequest
from neuronmoe_plugins.vocabulary.options import VocabularyOptions


def data(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="Says which data sets, from where, and how much.")],
    output: Annotated[Path, typer.Option(help="Folder for the data sets, dataset_info.json and manifest.json.")],
    workers: Annotated[
        int | None, typer.Option(help="Processes that share the work.", show_default="one per core")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace data sets of the same names.")] = False,
) -> None:
    """Draw training, replay, held-out and analysis texts from corpora of any size, none of them twice."""
    from rich.console import Console

    from neuronmoe_plugins.data.prepare import prepare_data
    from neuronmoe_plugins.data.tokenizer import tokenizer_fits
    from neuronmoe_plugins.tables import print_table

    prepared = prepare_data(spec, output, workers, force, progress=not is_quiet())
    warn(prepared.warnings())
    print_table(Console(), _data_table(prepared.manifest["datasets"]), str(output / "manifest.json"))
    for name, fit in tokenizer_fits(prepared.manifest).items():
        typer.echo(f"{name}: {fit.words_and_bytes()}")
    note(f"Wrote {output}" if prepared.is_new else f"{output} is up to date")


def _data_table(entries: list[dict[str, Any]]) -> Any:
    from neuronmoe_plugins.tables import Table

    words, numbers = ("name", "language", "role"), ("documents", "characters", "bytes", "tokens")
    rows = [
        [*(entry[name] for name in words), *("-" if entry[name] is None else f"{entry[name]:,}" for name in numbers)]
        for entry in entries
    ]
    return Table("", ["data set", *words[1:], *numbers], rows, words=range(3), groups=[3, 1, 1, 1, 1])


def _to_learn(corpus: list[str] | None) -> tuple[Any, ...]:
    from neuronmoe_plugins.corpora import parse_corpus_specs

    return parse_corpus_specs(corpus, least=1) if corpus else ()


def _to_keep(keep: list[str] | None) -> tuple[Any, ...]:
    from neuronmoe_plugins.corpora import parse_corpus_specs

    return parse_corpus_specs(keep, "--keep", least=1) if keep else ()


@takes(VocabularyOptions, corpora=_to_learn, kept=_to_keep)
def vocabulary(options: VocabularyOptions) -> None:
    """Extend a base model's vocabulary by tokens of a new language; old text keeps exactly its tokens."""
    from rich.console import Console

    from neuronmoe_plugins.tables import print_table
    from neuronmoe_plugins.vocabulary.extend import extend_vocabulary
    from neuronmoe_plugins.vocabulary.measures import measures_table

    extended = extend_vocabulary(options, progress=not is_quiet())
    print_table(Console(), measures_table(extended.measures))
    typer.echo(extended.summary())
    note(f"Wrote {options.output}")


@takes(AllocationRequest)
def allocate(
    output: Annotated[Path, typer.Option(help="The allocation.yaml to write.")],
    request: AllocationRequest,
    compare: Annotated[Path | None, typer.Option(help="Another allocation.yaml to set against this one.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw it, and what it is compared with, into a PNG.")] = None,
) -> None:
    """Decide how many experts each layer gets."""
    from rich.console import Console

    from neuronmoe_plugins.allocation.allocate import allocate as allocate_experts
    from neuronmoe_plugins.allocation.comparison import load_comparable
    from neuronmoe_plugins.allocation.display import print_allocation, save_allocation_figure

    allocation = allocate_experts(request)
    other = None if compare is None else load_comparable(compare, allocation)
    _check_outputs(output, figure)
    allocation.save(output)
    if figure is not None:
        with writing(f"--figure {figure}"):
            save_allocation_figure(figure, allocation, other)
    print_allocation(Console(), allocation, other, output)
    note(f"Wrote {output}: {allocation.total_experts} experts in {len(allocation.num_experts)} layers")


def _check_outputs(output: Path, figure: Path | None) -> None:
    """Refuse to write over what `allocate` did not write, and to give a picture another kind's name."""
    from neuronmoe_plugins.allocation.allocation import Allocation

    writable_file("--output", output)
    if figure is not None:
        writable_file("--figure", figure)
        if figure.suffix.lower() != ".png":
            raise UserError(f"--figure {figure}: the figure is a PNG; give it a name that ends in .png")
        if figure.resolve() == output.resolve():
            raise UserError(f"--figure {figure} is --output, too; give it another name")
    if output.exists():
        try:
            Allocation.load(output)
        except UserError as error:
            raise UserError(f"--output {output} is there and no allocation ({error}); choose another name") from error


@takes(RecipeRequest)
def recipe(request: RecipeRequest) -> None:
    """Write the LLaMA-Factory YAMLs of both training stages."""
    from neuronmoe_plugins.recipe_files import write_recipe

    for path in write_recipe(request):
        note(f"Wrote {path}")
    for about in filter(None, (request.recipe.length_note, request.recipe.machine.note)):
        note(about)


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Folder of an adapter, published or this package's.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the same adapter in the other format.")],
) -> None:
    """Rewrite an adapter of the published code as this package's, or back; nothing is lost either way."""
    from neuronmoe_plugins.convert import convert as convert_adapter

    written = convert_adapter(source, output)
    note(f"Wrote {output} in the {written} format")
