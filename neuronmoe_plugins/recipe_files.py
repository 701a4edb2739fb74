"""Writes a recipe for the user's own model, allocation and data, after checking that they fit together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_text
from neuronmoe_plugins.reading import read_json_object
from neuronmoe_plugins.recipes import Recipe
from neuronmoe_plugins.sharding import Deepspeed


@dataclass(frozen=True)
class RecipeRequest:
    """What `neuronmoe recipe` is asked for.

    Attributes:
        allocation: The allocation.yaml of `neuronmoe allocate`.
        model: Folder or hub name of the base model.
        target_datasets: Names in dataset_info.json of the data sets to learn.
        replay_datasets: Names of the data sets of languages to keep.
        dataset_dir: Folder of dataset_info.json.
        output: Folder to write to, and below which the stages will write.
        deepspeed: Also write this DeepSpeed file, and use it.
        force: Replace files that differ.
    """

    allocation: Path
    model: str
    target_datasets: tuple[str, ...]
    replay_datasets: tuple[str, ...]
    dataset_dir: Path
    output: Path
    deepspeed: Deepspeed | None = None
    force: bool = False


def write_recipe(request: RecipeRequest) -> list[Path]:
    """Write stage1.yaml and stage2.yaml (and the DeepSpeed file) with absolute paths, so that they run from any folder.

    Returns:
        The files, in order.

    Raises:
        UserError: if the allocation does not fit the model, a data set is not in dataset_info.json or not tagged for
            its role, or a file exists with another content.
    """
    allocation = Allocation.load(request.allocation)
    _check_layers(request, allocation)
    output = request.output.resolve()
    if "," in str(output):
        raise UserError(f"--output {output}: LLaMA-Factory splits adapter paths at commas; choose a path without one")
    recipe = Recipe(
        model=str(Path(request.model).resolve()) if Path(request.model).is_dir() else request.model,
        num_experts=allocation.num_experts,
        target_datasets=list(request.target_datasets),
        replay_datasets=list(request.replay_datasets),
        dataset_dir=str(request.dataset_dir.resolve()),
        output_dir=str(output),
        original_languages=_check_languages(request, allocation),
        deepspeed=None if request.deepspeed is None else str(output / request.deepspeed.file_name),
    )
    texts = {"stage1.yaml": recipe.stage1(), "stage2.yaml": recipe.stage2()}
    if request.deepspeed is not None:
        texts[request.deepspeed.file_name] = request.deepspeed.to_json()
    return _write_all({output / name: text for name, text in texts.items()}, request.force)


def _check_layers(request: RecipeRequest, allocation: Allocation) -> None:
    """Compare with a model on disk; LLaMA-Factory's start compares in any case."""
    if max(allocation.num_experts) < 2:
        raise UserError(f"{request.allocation}: num_experts is 1 in every layer, so there is nothing to train")
    if not (Path(request.model) / "config.json").is_file():
        return
    from transformers import AutoConfig

    num_layers = AutoConfig.from_pretrained(request.model).get_text_config().num_hidden_layers
    if num_layers != len(allocation.num_experts):
        raise UserError(
            f"{request.allocation}: num_experts has {len(allocation.num_experts)} entries, but {request.model} has "
            f"{num_layers} layers; allocate from an analysis of this model"
        )


def _check_languages(request: RecipeRequest, allocation: Allocation) -> list[str]:
    """Check the data sets' tags; returns the codes that count as old, none if the tags are old and new."""
    info_path = request.dataset_dir / "dataset_info.json"
    info = read_json_object(
        info_path,
        "it must map names of data sets to their entries",
        missing=f"{info_path} does not exist; --dataset-dir must be LLaMA-Factory's data folder, and --data one that "
        "`neuronmoe data` wrote",
    )
    replay = {name: _language(info_path, info, name) for name in request.replay_datasets}
    target = {name: _language(info_path, info, name) for name in request.target_datasets}
    for name, tag in replay.items():
        if tag == "new" or tag in allocation.targets:
            raise UserError(
                f'{info_path}: {name} is a replay data set, but its "language" is "{tag}"; set it to "old" or to the '
                "code of a language that the model knows"
            )
    codes = sorted({tag for tag in replay.values() if tag != "old"})
    for name, tag in target.items():
        if tag == "old" or tag == allocation.source or tag in codes:
            raise UserError(
                f'{info_path}: {name} is a target data set, but its "language" is "{tag}", an old one; set it to '
                '"new" or to the code of the language to learn'
            )
    coded = [name for name, tag in target.items() if tag != "new"]
    if coded and not codes:
        raise UserError(
            f'{info_path}: {coded[0]} is tagged with a language code, but the replay data sets with "old"; set its '
            '"language" to "new", or tag all data sets with codes'
        )
    return codes


def _language(info_path: Path, info: dict[str, Any], name: str) -> str:
    if name not in info:
        raise UserError(f"{info_path} has no data set {name}; it has: {', '.join(sorted(info)) or 'none'}")
    tag = info[name].get("language")
    if not isinstance(tag, str) or not tag:
        raise UserError(f'{info_path}: {name} has no "language"; add "old", "new" or a language code')
    return tag


def _write_all(texts: dict[Path, str], force: bool) -> list[Path]:
    """Write all files or, if one exists with another content and `force` is off, none."""
    changed = {path: text for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text}
    existing = [path for path in changed if path.exists()]
    if existing and not force:
        raise UserError(f"{', '.join(map(str, existing))} exists with another content; add --force to replace it")
    for path, text in changed.items():
        write_text(path, text)
    return list(texts)
