"""Which arguments of `moe` have an effect beside which others, and which a run cannot do without."""

from __future__ import annotations

from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.tuner.config import LOSS_COEFFICIENTS

GROUP_LOSSES = ("classify_loss_coef", "sequential_add_loss_coef")
TRAINING_ONLY = (
    *LOSS_COEFFICIENTS,
    *("aux_loss_per_sequence", "lpr_double_softmax", "train_only_router"),
    *("generate_lang_mask", "original_languages", "sequential_add_mask"),
)
DEPENDENT = {"aux_loss_per_sequence": "aux_loss_coef", "lpr_double_softmax": "lpr_loss_coef"}
COUNTS = ("moe_num_experts", "ada_moe_num_experts_list")


def check_inference(given: dict[str, Any]) -> None:
    """Refuse inference without an adapter, and with arguments that only training reads.

    Args:
        given: The arguments that the user gave.

    Raises:
        UserError: naming the arguments.
    """
    if not given.get("adapter_name_or_path"):
        raise UserError("finetuning_type: moe without training needs an adapter: set adapter_name_or_path")
    unused = [name for name in TRAINING_ONLY if given.get(name)]
    if unused:
        raise UserError(f"no effect without training: {', '.join(unused)}; remove, or set do_train: true")


def check_task(given: dict[str, Any]) -> None:
    """Refuse a run of `train` that would do nothing, or train on nothing.

    Raises:
        UserError: naming the missing arguments.
    """
    if not any(given.get(name) for name in ("do_train", "do_eval", "do_predict")):
        raise UserError("nothing to do: set do_train: true (or do_eval, do_predict)")
    if given.get("do_train") and not given.get("dataset"):
        raise UserError("dataset is missing: name the data sets to train on, as in dataset_info.json")


def check_training(given: dict[str, Any]) -> None:
    """Refuse losses without what they read, settings of losses that are not there, and an adapter of unknown size.

    Args:
        given: The arguments that the user gave.

    Raises:
        UserError: naming the arguments.
    """
    if not given.get("adapter_name_or_path"):
        _check_new_adapter(given)
    if given.get("lpr_loss_coef") and not given.get("generate_lang_mask"):
        raise UserError("lpr_loss_coef needs to know which tokens are in an old language: set generate_lang_mask: true")
    _check_group_losses(given)
    for name, loss in DEPENDENT.items():
        if given.get(name) and not given.get(loss):
            raise UserError(f"{name} has no effect without {loss}")


def _check_new_adapter(given: dict[str, Any]) -> None:
    if given.get("train_only_router"):
        raise UserError("train_only_router trains an existing adapter: set adapter_name_or_path to that of stage 1")
    if all(given.get(name) is None for name in COUNTS):
        raise UserError(
            "the number of experts is missing: set ada_moe_num_experts_list (per layer, as `neuronmoe allocate` writes "
            "it) or moe_num_experts (the same in all layers), or adapter_name_or_path to train an adapter further"
        )


def _check_group_losses(given: dict[str, Any]) -> None:
    losses = [name for name in GROUP_LOSSES if given.get(name)]
    if losses and not given.get("sequential_add_mask"):
        raise UserError(
            f"{' and '.join(losses)}: the language group of each token is missing: set sequential_add_mask: true"
        )
    if given.get("sequential_add_mask") and not losses:
        raise UserError(f"sequential_add_mask has no effect without {' or '.join(GROUP_LOSSES)}")
