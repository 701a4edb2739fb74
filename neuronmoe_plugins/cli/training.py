"""The commands for LLaMA-Factory's and the published code's files: `recipe` and `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.sharding import Deepspeed


def recipe(
    allocation: Annotated[Path, typer.Option(help="The allocation.yaml of `neuronmoe allocate`.")],
    model: Annotated[str, typer.Option(help="Folder or hub name of the base model.")],
    output: Annotated[Path, typer.Option(help="Folder for stage1.yaml and stage2.yaml and the trained adapters.")],
    target_dataset: Annotated[
        str | None, typer.Option(help="Data set(s) to learn, as in dataset_info.json: a[,b].")
    ] = None,
    replay_dataset: Annotated[str | None, typer.Option(help="Data set(s) of the languages to keep: a[,b].")] = None,
    dataset_dir: Annotated[Path | None, typer.Option(help="Folder of dataset_info.json.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Instead of these three: a folder of `neuronmoe data`, which has the roles.")
    ] = None,
    deepspeed: Annotated[Deepspeed | None, typer.Option(help="Also write this DeepSpeed file, and use it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that differ.")] = False,
) -> None:
    """Write the LLaMA-Factory YAMLs of both training stages."""
    from neuronmoe_plugins.recipe_files import RecipeRequest, write_recipe

    datasets = _chosen_datasets(allocation, data, target_dataset, replay_dataset, dataset_dir)
    request = RecipeRequest(allocation, model, *datasets, output, deepspeed, force)
    for path in write_recipe(request):
        typer.echo(f"Wrote {path}")


def _chosen_datasets(
    allocation: Path, data: Path | None, target_dataset: str | None, replay_dataset: str | None, folder: Path | None
) -> tuple[tuple[str, ...], tuple[str, ...], Path]:
    """The data sets to learn, those to keep, and their folder, by `--data` or by the options that it stands for.

    Raises:
        UserError: if neither or both are given, or the folder of `--data` does not fit the allocation.
    """
    options = {"--target-dataset": target_dataset, "--replay-dataset": replay_dataset, "--dataset-dir": folder}
    if data is not None:
        if given := [option for option, value in options.items() if value is not None]:
            raise UserError(f"--data {data} says what {given[0]} says; leave one out")
        from neuronmoe_plugins.allocation.allocation import Allocation
        from neuronmoe_plugins.data.manifest import read_manifest, training_datasets

        manifest = read_manifest(data)
        return *training_datasets(manifest, Allocation.load(allocation).targets, allocation), data
    if target_dataset is None or replay_dataset is None or folder is None:
        missing = ", ".join(option for option, value in options.items() if value is None)
        raise UserError(f"missing {missing}: name data sets and their folder, or pass --data DIR instead")
    return tuple(target_dataset.split(",")), tuple(replay_dataset.split(",")), folder


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Folder of an adapter, published or this package's.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the same adapter in the other format.")],
) -> None:
    """Rewrite an adapter of the published code as this package's, or back; nothing is lost either way."""
    from neuronmoe_plugins.convert import convert as convert_adapter

    written = convert_adapter(source, output)
    typer.echo(f"Wrote {output} in the {written} format")
