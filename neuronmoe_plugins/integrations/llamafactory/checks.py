"""What must hold before anything is loaded; each failure is one line that names the key."""

from __future__ import annotations

from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.llamafactory.arguments import (
    MoeDataArguments,
    MoeFinetuningArguments,
    given_moe_arguments,
)
from neuronmoe_plugins.integrations.llamafactory.dataset_tags import GROUP, LANGUAGE
from neuronmoe_plugins.integrations.llamafactory.tokenized_data import check_saved_tags
from neuronmoe_plugins.tuner import MoeConfig
from neuronmoe_plugins.tuner.config import LOSS_COEFFICIENTS

GROUP_LOSSES = ("classify_loss_coef", "sequential_add_loss_coef")


def check_method(model_args: Any, data_args: MoeDataArguments, finetuning_args: MoeFinetuningArguments) -> None:
    """Refuse combinations of `moe` with what it cannot run with, in training and inference.

    Raises:
        UserError: naming the keys.
    """
    if finetuning_args.finetuning_type != "moe":
        given = given_moe_arguments(data_args)
        if given:
            raise UserError(
                f"{', '.join(given)}: only valid with finetuning_type: moe, not {finetuning_args.finetuning_type}"
            )
        return
    if finetuning_args.stage not in ("pt", "sft"):
        raise UserError(f"finetuning_type: moe trains with stage: pt or sft, not {finetuning_args.stage}")
    for arguments, name in (
        (model_args, "use_unsloth"),
        (model_args, "use_kt"),
        (model_args, "mixture_of_depths"),
        (finetuning_args, "use_mca"),
        (finetuning_args, "use_hyper_parallel"),
    ):
        if getattr(arguments, name):
            raise UserError(f"finetuning_type: moe does not work with {name}: remove it")
    if len(model_args.adapter_name_or_path or []) > 1:
        raise UserError("finetuning_type: moe takes one adapter in adapter_name_or_path, not several")


def check_training(
    model_args: Any, data_args: MoeDataArguments, finetuning_args: MoeFinetuningArguments, given: set[str]
) -> None:
    """Refuse a training run that would end in an error, or in losses that do nothing, after the data is read.

    Args:
        model_args: The host's model arguments.
        data_args: Data arguments.
        finetuning_args: Fine-tuning arguments with `finetuning_type: moe`.
        given: Names of the arguments that the user gave.

    Raises:
        UserError: naming the keys.
    """
    if finetuning_args.train_only_router and not model_args.adapter_name_or_path:
        raise UserError("train_only_router trains an existing adapter: set adapter_name_or_path to that of stage 1")
    _check_losses(data_args, finetuning_args)
    _check_checkpointing(model_args, finetuning_args, given)
    if data_args.generate_lang_mask:
        _check_languages(data_args, finetuning_args)
    check_saved_tags(data_args)
    config, num_layers = _check_experts(model_args, finetuning_args)
    _check_packing(data_args, config)
    if data_args.sequential_add_mask:
        _check_groups(data_args, config, num_layers)


def _check_losses(data_args: MoeDataArguments, finetuning_args: MoeFinetuningArguments) -> None:
    """A loss needs the tags that it reads, and what changes a loss needs the loss."""
    if finetuning_args.lpr_loss_coef and not data_args.generate_lang_mask:
        raise UserError("lpr_loss_coef needs to know which tokens are in an old language: set generate_lang_mask: true")
    group_losses = [name for name in GROUP_LOSSES if getattr(finetuning_args, name)]
    if group_losses and not data_args.sequential_add_mask:
        raise UserError(
            f"{' and '.join(group_losses)}: the language group of each token is missing: set sequential_add_mask: true"
        )
    if data_args.sequential_add_mask and not group_losses:
        raise UserError(f"sequential_add_mask has no effect without {' or '.join(GROUP_LOSSES)}")
    if finetuning_args.aux_loss_per_sequence and not finetuning_args.aux_loss_coef:
        raise UserError("aux_loss_per_sequence has no effect without aux_loss_coef")


def _check_checkpointing(model_args: Any, finetuning_args: MoeFinetuningArguments, given: set[str]) -> None:
    """Router logits recorded under reentrant checkpointing have no gradient."""
    if model_args.disable_gradient_checkpointing:
        return
    losses = [name for name in LOSS_COEFFICIENTS if getattr(finetuning_args, name)]
    for key in ("use_reentrant_gc", "use_unsloth_gc"):
        if losses and key in given and getattr(model_args, key):
            raise UserError(
                f"{key}: true runs the forward without gradients, so {' and '.join(losses)} would have none; "
                f"set {key}: false"
            )


def _check_packing(data_args: MoeDataArguments, config: MoeConfig) -> None:
    """Classifiers read the mean of a sequence's real tokens, which the mask of `neat_packing` does not tell."""
    if data_args.neat_packing and config.group_nums:
        raise UserError(
            "group_nums does not work with neat_packing, which packs conversations of several groups into one sequence "
            "whose padding the classifiers cannot see: set packing: false"
        )


def _check_languages(data_args: MoeDataArguments, finetuning_args: MoeFinetuningArguments) -> None:
    """Every data set has a language, and the language-prior loss some old one."""
    training = LANGUAGE.of_datasets(data_args.dataset or [], data_args)
    LANGUAGE.of_datasets(data_args.eval_dataset or [], data_args)
    if finetuning_args.lpr_loss_coef and not any(training.values()):
        raise UserError(
            f"lpr_loss_coef has nothing to act on: none of the data sets {', '.join(training)} is in an old language; "
            'add one with "language": "old" in dataset_info.json, or name its code in original_languages'
        )


def _check_groups(data_args: MoeDataArguments, config: MoeConfig, num_layers: int) -> None:
    """Every data set has a group that the classifiers know, and that has experts where tokens are drawn to them."""
    plans = config.layer_plans(num_layers).values()
    training = GROUP.of_datasets(data_args.dataset or [], data_args)
    known = min((plan.num_groups for plan in plans if plan.num_groups), default=None)
    for name, group in (training | GROUP.of_datasets(data_args.eval_dataset or [], data_args)).items():
        if known is not None and group >= known:
            raise UserError(
                f'{data_args.dataset_dir}/dataset_info.json: {name}: "group_tag" is group {group}, but group_nums has '
                f"{known}, which are 0 to {known - 1}"
            )
    has_experts = {
        0: True,
        1: any(plan.num_first_experts > 1 for plan in plans),
        2: any(plan.num_experts > plan.num_first_experts for plan in plans),
    }
    for name, group in training.items():
        if config.sequential_add_loss_coef and not has_experts[min(group, 2)]:
            raise UserError(
                f"sequential_add_loss_coef draws the tokens of {name} to no expert: its group {group} has those beyond "
                "old_moe_num_experts_list, and there are none"
            )


def _check_experts(model_args: Any, finetuning_args: MoeFinetuningArguments) -> tuple[MoeConfig, int]:
    """The expert counts must fit the model's layers, and an adapter that is loaded.

    Returns:
        The configuration of the adapter that will be trained, and the model's number of layers.
    """
    from llamafactory.model.loader import load_config

    from neuronmoe_plugins.integrations.llamafactory.adapter import load_or_make_config

    num_layers = load_config(model_args).get_text_config().num_hidden_layers
    config = load_or_make_config(model_args, finetuning_args, num_layers)
    key = "layers_to_moe, moe_num_experts" if finetuning_args.expert_list is None else "ada_moe_num_experts_list"
    try:
        config.layer_plans(num_layers)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
    return config, num_layers
