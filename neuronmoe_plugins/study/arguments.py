"""What a study has for other programs: names, numbers, learning rates, and arguments of LLaMA-Factory by stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuronmoe_plugins.models import require_model
from neuronmoe_plugins.reading import Fields, filled_text, is_number, must_be, shown, whole

STAGES = ("stage1", "stage2")
# YAML 1.1 reads 2e-3, which lacks a dot, as a text.
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)", re.IGNORECASE)
GIVEN = {
    **dict.fromkeys(("finetuning_type", "do_train"), "method"),
    **dict.fromkeys(("model_name_or_path", "adapter_name_or_path"), "model"),
    **dict.fromkeys(("dataset", "dataset_dir", "output_dir"), "targets"),
    **{"seed": "seeds", "learning_rate": "learning_rates"},
}
"""Arguments that a study gives itself -> the key that says them."""

Values = dict[str, Any]


def mapping(fields: Fields, key: str) -> Mapping[Any, Any]:
    """A mapping that has something; raises `UserError` for anything else."""
    return dict(fields.required(key, must_be("a mapping", lambda value: isinstance(value, Mapping) and bool(value))))


def values_of(fields: Fields, key: str) -> Values:
    """Arguments for another program, perhaps none, with texts such as 2e-3 as the numbers that they are."""
    given = fields.optional(key, must_be("a mapping", lambda value: isinstance(value, Mapping)), {})
    return {str(name): _number(value) for name, value in given.items()}


def by_stage(fields: Fields) -> dict[str, Values]:
    """The arguments of each stage: those of `training`, and its own; none of stage 2 where that is `false`.

    Raises:
        UserError: for one that the study gives itself; stage 2 may have a learning rate of its own.
    """
    stages = STAGES[:1] if fields.optional("stage2", lambda value: value is False) else STAGES
    for key in ("training", *stages):
        for name in values_of(fields, key):
            if name in GIVEN and (key, name) != ("stage2", "learning_rate"):
                raise fields.error(key, f"{name} follows from {GIVEN[name]}; leave it out")
    return {stage: values_of(fields, "training") | values_of(fields, stage) for stage in stages}


def model_of(fields: Fields, base: Path) -> str:
    """The base model that is named as `model`, a hub name or a folder, which may be relative to the spec's.

    Raises:
        UserError: if it cannot be there.
    """
    name = fields.required("model", filled_text)
    name = str((base / name).resolve()) if (base / name).is_dir() else name
    require_model(f"{fields.where}: model", name)
    return name


def names(value: Any) -> tuple[str, ...]:
    """One name, or a list of them."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not given or not all(isinstance(name, str) and name for name in given):
        raise ValueError(f"must be a name, or a list of names; got {shown(value)}")
    return tuple(given)


def rates(value: Any) -> tuple[float, ...]:
    """One learning rate, or a list of them."""
    given = [_number(each) for each in (value if isinstance(value, list) else [value])]
    if not given or not all(is_number(each) and each > 0 for each in given) or len(set(given)) < len(given):
        raise ValueError(f"must be learning rates above 0, each once; got {shown(value)}")
    return tuple(map(float, given))


def seeds(value: Any) -> tuple[int, ...]:
    """One seed, or a list of them."""
    given = list(map(whole(0), value if isinstance(value, list) else [value]))
    if not given or len(set(given)) < len(given):
        raise ValueError(f"must be seeds, each once; got {shown(value)}")
    return tuple(given)


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value
