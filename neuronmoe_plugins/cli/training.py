"""The commands for LLaMA-Factory's and the published code's files: `recipe` and `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuronmoe_plugins.sharding import Deepspeed


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


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Folder of an adapter, published or this package's.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the same adapter in the other format.")],
) -> None:
    """Rewrite an adapter of the published code as this package's, or back; nothing is lost either way."""
    from neuronmoe_plugins.convert import convert as convert_adapter

    written = convert_adapter(source, output)
    typer.echo(f"Wrote {output} in the {written} format")
