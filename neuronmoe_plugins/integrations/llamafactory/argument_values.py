"""What the arguments of `moe` can be, each by itself and beside the others, whatever the model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.tuner.config import LOSS_COEFFICIENTS
from neuronmoe_plugins.tuner.experts.choosing import AUTO, check_implementation, wanted_implementation

if TYPE_CHECKING:
    from neuronmoe_plugins.integrations.llamafactory.arguments import MoeFinetuningArguments


def check_moe_arguments(arguments: MoeFinetuningArguments) -> None:
    """Refuse values that no run could use.

    Raises:
        UserError: naming the argument and its value.
    """
    for name in ("topk", "moe_num_experts"):
        _check_count(name, getattr(arguments, name))
    for name, counts in (
        ("ada_moe_num_experts_list", arguments.expert_list),
        ("old_moe_num_experts_list", arguments.old_expert_list),
    ):
        _check_counts(name, counts)
    _check_groups(arguments.group_counts)
    _check_layers(arguments.moe_layers)
    for name in LOSS_COEFFICIENTS:
        _check_coefficient(name, getattr(arguments, name))
    if arguments.moe_num_experts is not None and arguments.expert_list is not None:
        raise UserError("moe_num_experts and ada_moe_num_experts_list: give one of them, not both")
    _check_implementation(arguments.experts_implementation)
    _check_published(arguments)


def _check_count(name: str, value: Any) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise UserError(f"{name} must be an integer of at least 1; got {value!r}")


def _check_counts(name: str, counts: list[int] | None) -> None:
    if counts is not None and min(counts, default=0) < 1:
        raise UserError(f"{name} must have a count of at least 1 for each layer (1 leaves it dense); got {counts}")


def _check_implementation(name: str | None) -> None:
    try:
        if name is not None:
            check_implementation("experts_implementation", name)
        # What the environment says is for the mixture to ask, but is refused before a model is loaded.
        wanted_implementation(name or AUTO)
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_groups(groups: int | list[int] | None) -> None:
    numbers = groups if isinstance(groups, list) else [groups or 0]
    if min(numbers, default=-1) < 0:
        raise UserError(f"group_nums must have a number of at least 0 for each layer; got {groups}")


def _check_layers(layers: list[int] | None) -> None:
    if layers is None:
        return
    if min(layers, default=-1) < 0:
        raise UserError(f"layers_to_moe must name layers from 0 on; got {layers}")
    twice = sorted({layer for layer in layers if layers.count(layer) > 1})
    if twice:
        raise UserError(f"layers_to_moe names layers {twice} more than once: {layers}")


def _check_coefficient(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise UserError(f"{name} must be a finite number; got {value!r}")
    if value < 0:
        raise UserError(f"{name} must not be negative; got {value}")


def _check_published(arguments: MoeFinetuningArguments) -> None:
    """Arguments of the published code that are taken only as they are there by default."""
    if arguments.moe_every_k_layers != 1:
        step = arguments.moe_every_k_layers
        raise UserError(
            f"moe_every_k_layers must be 1; got {step!r}: name the layers in layers_to_moe, or give the others 1 "
            "expert in ada_moe_num_experts_list"
        )
    if arguments.save_all_params:
        raise UserError("save_all_params must be false: the base model stays frozen, and is not saved with the adapter")
