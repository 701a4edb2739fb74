"""The arms of a study: each way of training, multiplied out over what it has lists of, in every language."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.reading import Fields, choice
from neuronmoe_plugins.study.arguments import STAGES, Values, by_stage, mapping, model_of, names, rates, seeds

BASE = "base"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
OF_ALL = ("method", "model", "training", *STAGES, "learning_rates", "seeds", "targets")
METHODS = {
    "lora": ("rank", "match", "target"),
    "full": (),
    "freeze": ("layers", "modules"),
    "experts": ("allocate", "allocation", "num_experts", "expert_rank", "expert_targets", "match"),
}
"""How an arm is trained -> its own keys, each of which may be a list of values: an arm each."""


@dataclass(frozen=True)
class ArmSpec:
    """One set-up, which is trained once per language, learning rate and seed.

    Attributes:
        name: Of the arm.
        family: What the spec calls it and those that differ in a value of a list.
        where: Begins errors about it.
        method: One of `METHODS`, or `BASE` of a model as it was.
        model: Folder or hub name of the base model.
        values: The method's keys and their values.
        training: Arguments of LLaMA-Factory, by stage.
        learning_rates: Of stage 1; the best one with the first seed is trained with the others.
        seeds: Of the trainings.
        targets: The languages.
    """

    name: str
    family: str
    where: str
    method: str
    model: str
    values: Values
    training: Mapping[str, Values]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    targets: tuple[str, ...]


def read_arms(top: Fields, defaults: ArmSpec) -> Iterator[ArmSpec]:
    """The arms of a spec, in its order.

    Args:
        top: The whole spec.
        defaults: What an arm that does not say otherwise has.

    Raises:
        UserError: naming the file, the arm and the key at fault.
    """
    taken: set[str] = set()
    for name, value in mapping(top, "arms").items():
        for arm in _read_arm(name, value, f"{top.where}: arms: {name}", defaults):
            if arm.name in taken:
                raise UserError(f"{arm.where}: there are two arms called {arm.name}; name one otherwise")
            taken.add(arm.name)
            yield arm


def base_arms(arms: Sequence[ArmSpec], defaults: ArmSpec) -> list[ArmSpec]:
    """The models on which arms are trained, as they were; the spec's is `BASE`, others have their name in theirs.

    Raises:
        UserError: if two have the same name, or an arm has it.
    """
    base = replace(defaults, name=BASE, family=BASE, method=BASE, training={}, learning_rates=(), seeds=())
    found, taken = {base.model: base}, {BASE, *(arm.name for arm in arms)}
    for arm in arms:
        own = found.get(arm.model)
        if own is None:
            name = f"{BASE}-{Path(arm.model).name}"
            if name in taken:
                raise UserError(f"{arm.where}: model: there would be another {name}; rename the folder {arm.model}")
            taken.add(name)
            own = replace(base, name=name, family=name, model=arm.model, targets=())
        found[arm.model] = replace(own, targets=tuple(dict.fromkeys((*own.targets, *arm.targets))))
    return list(found.values())


def _read_arm(name: object, value: object, where: str, defaults: ArmSpec) -> Iterator[ArmSpec]:
    keys = [key for key in value if isinstance(key, str)] if isinstance(value, Mapping) else OF_ALL
    method = Fields(value, where, keys).required("method", choice(tuple(METHODS)))
    fields = Fields(value, where, (*OF_ALL, *METHODS[method]))
    targets = tuple(dict.fromkeys(fields.optional("targets", names, defaults.targets)))
    if unknown := [target for target in targets if target not in defaults.targets]:
        raise fields.error("targets", f"{unknown[0]} is not among the study's: {', '.join(defaults.targets)}")
    own = by_stage(fields)
    if fields.has("stage2") and own.keys() > defaults.training.keys():
        raise fields.error("stage2", "the study has none; add stage2: {} to it, or leave this out")
    training = {stage: {**values, **own[stage]} for stage, values in defaults.training.items() if stage in own}
    own_rates = fields.optional("learning_rates", rates, defaults.learning_rates)
    own_seeds = fields.optional("seeds", seeds, defaults.seeds)
    model = model_of(fields, Path(defaults.where).parent) if fields.has("model") else defaults.model
    given = {key: fields.required(key) for key in METHODS[method] if fields.has(key)}
    for ending, values in _multiplied(given):
        arm = ArmSpec(
            f"{name}{ending}", str(name), where, method, model, values, training, own_rates, own_seeds, targets
        )
        if not NAME.fullmatch(arm.name) or arm.name == BASE:
            problem = f"the arm {arm.name!r} would be a folder; use letters, digits, - _ . and not {BASE!r}"
            raise UserError(f"{where}: {problem}")
        yield arm


def _multiplied(values: Values) -> Iterator[tuple[str, Values]]:
    """Each combination of what is given as lists, and what its name ends with; `allocate` may have lists in it."""
    flat: dict[tuple[str, ...], Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {(key, str(inner)): own for inner, own in value.items()}
        else:
            flat[key,] = value
    listed = {place: value for place, value in flat.items() if isinstance(value, list)}
    for chosen in itertools.product(*listed.values()):
        made: Values = {}
        for place, value in (flat | dict(zip(listed, chosen, strict=True))).items():
            (made if len(place) == 1 else made.setdefault(place[0], {}))[place[-1]] = value
        yield "".join(f"-{'none' if value is None else value}" for value in chosen), made
