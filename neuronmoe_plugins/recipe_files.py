"""Writes a recipe for the user's own model, allocation and data, after checking that they fit together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.files import writable_file, writable_folder, write_text, writing
from neuronmoe_plugins.machines import Deepspeed, Device, find_machine
from neuronmoe_plugins.models import NEW_TOKENS, cached_config, require_model
from neuronmoe_plugins.options import check_options, option
from neuronmoe_plugins.reading import is_count, read_json_object
from neuronmoe_plugins.recipes import Recipe

CONFIGURATION = "it must be the configuration of a model"


@dataclass(frozen=True)
class RecipeRequest:
    """What `neuronmoe recipe` is asked for.

    Raises:
        UserError: if neither or both say what to train on, `data` and the three that it stands for.
    """

    allocation: Path = option("The allocation.yaml of `neuronmoe allocate`.")
    model: str = option("Folder or hub name of the base model.")
    output: Path = option("Folder for stage1.yaml and stage2.yaml and the trained adapters.", check=writable_folder)
    target_datasets: tuple[str, ...] | None = option(
        "Data sets to learn, as in dataset_info.json.", None, flag="target_dataset", split=True, value="NAME[,NAME...]"
    )
    replay_datasets: tuple[str, ...] | None = option(
        "Data sets of the languages to keep.", None, flag="replay_dataset", split=True, value="NAME[,NAME...]"
    )
    dataset_dir: Path | None = option("Folder of dataset_info.json.", None)
    data: Path | None = option("Instead of these three: a folder of `neuronmoe data`, which has the roles.", None)
    deepspeed: Deepspeed | None = option("Also write this DeepSpeed file, and use it.", None)
    device: Device = option("What will train: this machine (auto), one without a GPU, or one with.", Device.AUTO)
    force: bool = option("Replace files that differ.", False)

    def __post_init__(self) -> None:
        check_options(self)
        named = {
            "--target-dataset": self.target_datasets,
            "--replay-dataset": self.replay_datasets,
            "--dataset-dir": self.dataset_dir,
        }
        if self.data is not None:
            if given := [flag for flag, value in named.items() if value is not None]:
                raise UserError(f"--data {self.data} says what {given[0]} says; leave one out")
        elif missing := [flag for flag, value in named.items() if value is None]:
            raise UserError(
                f"missing {', '.join(missing)}: name data sets and their folder, or pass --data DIR instead"
            )

    @cached_property
    def recipe(self) -> Recipe:
        """What the YAMLs say; imports torch if `device` is `auto`. Raises `UserError` where the parts do not fit."""
        return make_recipe(self, Allocation.load(self.allocation))


@dataclass(frozen=True)
class _Datasets:
    """What a recipe trains on: names in a folder's dataset_info.json."""

    targets: tuple[str, ...]
    replays: tuple[str, ...]
    folder: Path
    tokens: int | None = None

    @classmethod
    def of(cls, request: RecipeRequest) -> _Datasets:
        """Those that the request names, or those of the folder that it names instead, if it fits the allocation."""
        if request.data is None:
            return cls(request.target_datasets or (), request.replay_datasets or (), request.dataset_dir or Path())
        from neuronmoe_plugins.data.manifest import read_manifest, training_datasets

        manifest, targets = read_manifest(request.data), Allocation.load(request.allocation).targets
        learnt, kept = training_datasets(manifest, targets, request.allocation)
        return cls(learnt, kept, request.data, manifest.tokens(learnt))


def write_recipe(request: RecipeRequest) -> list[Path]:
    """Write stage1.yaml and stage2.yaml (and the DeepSpeed file) with absolute paths, so that they run from any folder.

    Returns:
        The files, in order.

    Raises:
        UserError: if the allocation does not fit the model, a data set is not in dataset_info.json or not tagged for
            its role, or a file exists with another content.
    """
    recipe, output = request.recipe, request.output.resolve()
    texts = {"stage1.yaml": recipe.stage1(), "stage2.yaml": recipe.stage2()}
    if request.deepspeed is not None:
        texts[request.deepspeed.file_name] = request.deepspeed.to_json()
    return _write_all({output / name: text for name, text in texts.items()}, request.force)


def make_recipe(request: RecipeRequest, allocation: Allocation) -> Recipe:
    """A recipe for an allocation, which errors call as the request does; raises `UserError` if they do not fit."""
    if max(allocation.num_experts) < 2:
        raise UserError(f"{request.allocation}: num_experts is 1 in every layer, so there is nothing to train")
    require_model("--model", request.model, is_needed=False)
    datasets = _Datasets.of(request)
    languages = _check_languages(datasets, allocation)
    output = request.output.resolve()
    if "," in str(output):
        raise UserError(f"--output {output}: LLaMA-Factory splits adapter paths at commas; choose a path without one")
    _check_layers(request, allocation)
    return Recipe(
        model=str(Path(request.model).resolve()) if Path(request.model).is_dir() else request.model,
        num_experts=allocation.num_experts,
        target_datasets=list(datasets.targets),
        replay_datasets=list(datasets.replays),
        dataset_dir=str(datasets.folder.resolve()),
        output_dir=str(output),
        original_languages=languages,
        deepspeed=None if request.deepspeed is None else str(output / request.deepspeed.file_name),
        machine=find_machine(request.device, request.deepspeed),
        target_tokens=datasets.tokens,
        expert_rank=allocation.expert_rank,
        expert_targets=allocation.expert_targets,
        has_new_tokens=_has_new_tokens(request.model),
    )


def _check_layers(request: RecipeRequest, allocation: Allocation) -> None:
    """Compare with a model on disk; LLaMA-Factory's start compares in any case."""
    num_layers = layers_of(request.model)
    if num_layers not in (None, len(allocation.num_experts)):
        raise UserError(
            f"{request.allocation}: num_experts has {len(allocation.num_experts)} entries, but {request.model} has "
            f"{num_layers} layers; allocate from an analysis of this model"
        )


def _has_new_tokens(model: str) -> bool:
    """Whether `neuronmoe vocabulary` has extended a model on disk."""
    path = cached_config(model)
    return path is not None and NEW_TOKENS in read_json_object(path, CONFIGURATION)


def layers_of(model: str) -> int | None:
    """The decoder layers of a model on disk; None for another. Raises `UserError` if they are not known."""
    path = cached_config(model)
    if path is None:
        return None
    config = read_json_object(path, CONFIGURATION)
    num_layers = (config.get("text_config") or config).get("num_hidden_layers")
    return num_layers if is_count(num_layers) else _layers_by_transformers(path)


def _layers_by_transformers(path: Path) -> int:
    """The layers of a model whose configuration calls them otherwise, or names none; imports what takes long."""
    from transformers import AutoConfig

    try:
        return int(AutoConfig.from_pretrained(path.parent).get_text_config().num_hidden_layers)
    except Exception as error:  # of any model's own checks
        raise UserError(f"{path} is not the configuration of a language model: {one_line(error)}") from error


def _check_languages(datasets: _Datasets, allocation: Allocation) -> list[str]:
    """Check the data sets' tags; returns the codes that count as old, none if the tags are old and new."""
    info_path = datasets.folder / "dataset_info.json"
    info = read_json_object(
        info_path,
        "it must map names of data sets to their entries",
        missing=f"{info_path} does not exist; --dataset-dir must be LLaMA-Factory's data folder, and --data one that "
        "`neuronmoe data` wrote",
    )
    replay = {name: _language(info_path, info, name) for name in datasets.replays}
    target = {name: _language(info_path, info, name) for name in datasets.targets}
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
    for path in texts:
        writable_file("--output:", path)
    changed = {path: text for path, text in texts.items() if not path.exists() or path.read_bytes() != text.encode()}
    existing = [path for path in changed if path.exists()]
    if existing and not force:
        raise UserError(f"{', '.join(map(str, existing))} exists with another content; add --force to replace it")
    for path, text in changed.items():
        with writing(str(path)):
            write_text(path, text)
    return list(texts)
