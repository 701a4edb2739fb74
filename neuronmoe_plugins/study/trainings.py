"""What LLaMA-Factory is told for each arm and language: the recipe's arguments, with the arm's method and its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from neuronmoe_plugins.allocation.allocate import allocate
from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.allocation.request import AllocationRequest
from neuronmoe_plugins.blocks import TARGETS
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import read_json
from neuronmoe_plugins.options import option_values
from neuronmoe_plugins.reading import Fields, filled_text, must_be, one_of, whole
from neuronmoe_plugins.recipe_files import RecipeRequest, layers_of, make_recipe
from neuronmoe_plugins.recipes import Recipe, Sections
from neuronmoe_plugins.study.arguments import Values
from neuronmoe_plugins.study.arms import METHODS, ArmSpec
from neuronmoe_plugins.study.spec import StudySpec, Target, load_spec

# Of the study itself, in every `allocate`.
GIVEN = ("source", "targets")
RANKS = {"lora": "rank", "experts": "expert_rank"}
"""Method of an arm that can `match` another -> its key for the rank that is chosen."""
# How far from the other's parameters it may be, as a part of them.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Training:
    """An arm in one language.

    Attributes:
        spec: The study.
        output: Folder of the study.
        arm: The arm.
        target: The language.
        stages: Stage -> arguments, but for what differs from run to run.
        allocation: Of an arm of experts.
    """

    spec: StudySpec
    output: Path
    arm: ArmSpec
    target: Target
    stages: Mapping[str, Values]
    allocation: Allocation | None = None

    @property
    def is_base(self) -> bool:
        """Whether it is the model as it was, which is not trained."""
        return not self.stages

    @cached_property
    def parameters(self) -> int | None:
        """What it adds to the model, or trains of it where it saves it whole; None where that is not known."""
        from neuronmoe_plugins.study.parameters import count_parameters

        try:
            return 0 if self.is_base else count_parameters(self.arm.model, self.stages["stage1"])
        except UserError as error:
            raise UserError(f"{self.arm.where}: {self.arm.name}: {error}") from error

    @property
    def rank(self) -> int | None:
        """Of LoRA, or of the new experts."""
        arguments = self.stages.get("stage1", {})
        rank: int | None = arguments.get("lora_rank", arguments.get("moe_expert_rank"))
        return rank

    @property
    def saves_model(self) -> bool:
        """Whether a stage saves a whole model, and no adapter."""
        return self.arm.method in ("full", "freeze")


def load_trainings(path: Path, output: Path) -> list[Training]:
    """All of a study's, the base models' first, in the order of the spec; nothing is written.

    Args:
        path: The spec.
        output: Folder of the study.

    Raises:
        UserError: naming what is wrong in the spec, the arm whose experts cannot be allocated, or whose parameters
            cannot be matched, or the data sets that are not there.
    """
    spec, output = load_spec(path), output.resolve()
    found = [Training(spec, output, base, spec.targets[code], {}) for base in spec.bases for code in base.targets]
    for arm in spec.arms:
        found += [_matched(spec, arm, spec.targets[code], output) for code in arm.targets]
    for target in spec.targets.values():
        _check_roles(spec, target)
    return found


def _check_roles(spec: StudySpec, target: Target) -> None:
    """No held-out text is what a data set has."""
    info = read_json(spec.dataset_dir / "dataset_info.json")
    for name in (*target.train, *target.replay, *target.review):
        trained = (spec.dataset_dir / str(info[name].get("file_name", name))).resolve()
        for text, file in spec.texts_of(target.language).items():
            if trained in (file, *file.parents):
                what = f"the text {text} is {file}, which {name} has for training; hold another text out"
                raise UserError(f"{spec.path}: {what}")


def only(trainings: Sequence[Training], names: Sequence[str]) -> list[Training]:
    """Those of these arms, and the base models'; raises `UserError` for a name that no arm has."""
    known = list(dict.fromkeys(training.arm.name for training in trainings))
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--arms: no arm is called {unknown[0]}; there are: {', '.join(known)}")
    return [training for training in trainings if training.is_base or training.arm.name in names]


def _training(spec: StudySpec, arm: ArmSpec, target: Target, output: Path) -> Training:
    given = Fields(arm.values, arm.where, METHODS[arm.method])
    allocation = _allocation(spec, arm, target, given) if arm.method == "experts" else None
    # A recipe needs an allocation; of those without, what it says of the method is left out.
    num_experts = [2] * (layers_of(arm.model) or 1)
    recipe = _recipe(spec, arm, target, allocation or _evenly(spec, target, num_experts), output)
    own = {} if allocation else METHOD_ARGUMENTS[arm.method](given)
    stages = {}
    for stage, sections in zip(arm.training, (recipe.stage1_sections(), recipe.stage2_sections()), strict=False):
        values = _of_recipe(sections, with_method=allocation is not None) | own
        both = (*target.replay, *(target.review or target.train))
        values["dataset"] = ",".join(target.train if stage == "stage1" else both)
        if stage == "stage2" and allocation is None:
            del values["learning_rate"]  # it is the run's
        values |= {"save_strategy": "no", "overwrite_output_dir": True, **arm.training[stage]}
        stages[stage] = values
    return Training(spec, output, arm, target, stages, allocation)


def _matched(spec: StudySpec, arm: ArmSpec, target: Target, output: Path) -> Training:
    """The training of an arm, with the rank at which it has the parameters of the one that it names as `match`."""
    given = Fields(arm.values, arm.where, METHODS[arm.method])
    name = given.optional("match", filled_text)
    if name is None:
        return _training(spec, arm, target, output)
    key = RANKS[arm.method]
    if said := [other for other in (key, "allocation") if given.has(other)]:
        raise given.error("match", f"{said[0]} says the rank; leave one out")
    others = {own.name: own for own in spec.arms if target.language in own.targets and "match" not in own.values}
    if name not in others:
        known = f"there are: {', '.join(others)}" if others else "there is none"
        raise given.error("match", f"no arm in {target.language} with parameters of its own is called {name}; {known}")

    def of_rank(rank: int) -> Training:
        kept = {other: value for other, value in arm.values.items() if other != "match"}
        return _training(spec, replace(arm, values={**kept, key: rank}), target, output)

    wanted = _training(spec, others[name], target, output).parameters
    one, two = (of_rank(rank).parameters for rank in (1, 2))
    if not (wanted and one and two) or one == two:
        raise given.error("match", f"how many parameters {name} or {arm.name} has is not known here; give {key}")
    training = of_rank(max(1, 1 + round((wanted - one) / (two - one))))  # routers are the same at every rank
    found = training.parameters or 0
    if abs(found - wanted) > TOLERANCE * wanted:
        off = f"{100 * abs(found / wanted - 1):.1f} % {'more' if found > wanted else 'fewer'}"
        what = f"{name} has {wanted:,} parameters in {target.language}, which no rank gives within"
        raise given.error(
            "match", f"{what} {100 * TOLERANCE:.0f} %: rank {training.rank} comes nearest with {found:,}, {off}"
        )
    return training


def _of_recipe(sections: Sections, with_method: bool) -> Values:
    """What a recipe says; without its method, what is left are text, sizes and the optimiser."""
    entries = {title: own for title, own in sections.items() if with_method or title not in ("Model", "Method")}
    values = {key: value for own in entries.values() for key, value, _ in own}
    model = {key: value for key, value, _ in sections["Model"] if key == "model_name_or_path"}
    return {**model, "stage": "pt", "do_train": True, **values}


def _recipe(spec: StudySpec, arm: ArmSpec, target: Target, allocation: Allocation, output: Path) -> Recipe:
    """The recipe of an allocation, which has no file yet: errors say of which arm it is."""
    named = Path(f"{arm.where} ({arm.name}, {target.language})")
    request = RecipeRequest(named, arm.model, output, (*target.train, *target.review), target.replay, spec.dataset_dir)
    return make_recipe(request, allocation)


def _allocation(spec: StudySpec, arm: ArmSpec, target: Target, given: Fields) -> Allocation:
    ways = [key for key in ("allocate", "allocation", "num_experts") if given.has(key)]
    if len(ways) != 1:
        raise UserError(f"{arm.where}: exactly one of allocate, allocation and num_experts must say which experts")
    rank = given.optional("expert_rank", whole(1))
    expert_targets = given.optional("expert_targets", must_be(f"one of {', '.join(TARGETS)}", one_of(*TARGETS)))
    if rank is None and expert_targets is not None:
        raise given.error("expert_targets", "needs expert_rank or match: full copies are of MLPs alone")
    if ways == ["num_experts"]:
        experts, num_layers = given.required("num_experts", whole(2)), layers_of(arm.model)
        if num_layers is None:
            raise given.error("num_experts", f"how many layers {arm.model} has is not known here; use allocate")
        even = _evenly(spec, target, [experts] * num_layers)
        return replace(even, expert_rank=rank, expert_targets=expert_targets)
    if ways == ["allocation"]:
        if rank is not None:
            raise given.error("expert_rank", "the allocation says it; leave it out")
        return Allocation.load(spec.path.parent / given.required("allocation", filled_text))
    options = given.required("allocate", must_be("options of `neuronmoe allocate`", lambda v: isinstance(v, Mapping)))
    said = {"expert_rank": rank, "expert_targets": expert_targets}
    options = {**options, **{key: value for key, value in said.items() if value is not None}}
    try:
        request = _request(spec, target, options)
        return allocate(request, spec.origin(request.origin))
    except UserError as error:
        raise UserError(f"{arm.where}: {arm.name}: {error}") from error


def _evenly(spec: StudySpec, target: Target, num_experts: list[int]) -> Allocation:
    """So many experts, which the spec itself says."""
    return Allocation(
        num_experts=num_experts,
        layer_scores=[],
        min_experts=min(num_experts),
        max_experts=max(num_experts),
        rounding=None,
        strategy="uniform",
        source=spec.source,
        targets=[target.language],
        scores_from=str(spec.path),
    )


def _request(spec: StudySpec, target: Target, options: Mapping[str, Any]) -> AllocationRequest:
    """What `neuronmoe allocate` would be asked for by these options; raises `UserError` naming the one at fault."""
    try:
        values = option_values(AllocationRequest, options, GIVEN)
    except UserError as error:
        raise UserError(f"allocate: {error}") from error
    origin = spec.path.parent / values["origin"] if "origin" in values else target.analysis
    if origin is None:
        raise UserError(f"targets: {target.language} has no analysis to allocate from; add analysis: DIR")
    return AllocationRequest(**{**values, "origin": origin, "source": spec.source, "targets": (target.language,)})


def _lora(given: Fields) -> Values:
    rank = given.required("rank", whole(1))
    target = given.optional("target", filled_text, "all")
    return {"finetuning_type": "lora", "lora_rank": rank, "lora_alpha": 2 * rank, "lora_target": target}


def _full(given: Fields) -> Values:
    return {"finetuning_type": "full"}


def _freeze(given: Fields) -> Values:
    """Layers: the last so many, or with a minus the first."""
    is_layers = must_be("a number of layers, not 0", lambda value: type(value) is int and value != 0)
    return {
        "finetuning_type": "freeze",
        "freeze_trainable_layers": given.required("layers", is_layers),
        "freeze_trainable_modules": given.optional("modules", filled_text, "mlp"),
    }


METHOD_ARGUMENTS: dict[str, Callable[[Fields], Values]] = {"lora": _lora, "full": _full, "freeze": _freeze}
