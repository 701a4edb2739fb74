"""What must hold before anything is loaded; each failure is one line that names the key."""

from __future__ import annotations

from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.llamafactory.arguments import (
    MoeDataArguments,
    MoeFinetuningArguments,
    given_moe_arguments,
)
from neuronmoe_plugins.integrations.llamafactory.language_tags import old_language_of_datasets


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
    if finetuning_args.lpr_loss_coef and not data_args.generate_lang_mask:
        raise UserError("lpr_loss_coef needs to know which tokens are in an old language: set generate_lang_mask: true")
    _check_checkpointing(model_args, finetuning_args, given)
    if data_args.generate_lang_mask:
        _check_language_mask(data_args, finetuning_args)
    _check_experts(model_args, finetuning_args)


def _check_checkpointing(model_args: Any, finetuning_args: MoeFinetuningArguments, given: set[str]) -> None:
    """Router logits recorded under reentrant checkpointing have no gradient."""
    if model_args.disable_gradient_checkpointing:
        return
    losses = [name for name in ("aux_loss_coef", "lpr_loss_coef") if getattr(finetuning_args, name)]
    for key in ("use_reentrant_gc", "use_unsloth_gc"):
        if losses and key in given and getattr(model_args, key):
            raise UserError(
                f"{key}: true runs the forward without gradients, so {' and '.join(losses)} would have none; "
                f"set {key}: false"
            )


def _check_language_mask(data_args: MoeDataArguments, finetuning_args: MoeFinetuningArguments) -> None:
    """The mask needs a data path that carries it, and a tag on every data set."""
    for key in ("streaming", "tokenized_path", "neat_packing"):
        if getattr(data_args, key):
            raise UserError(f"generate_lang_mask does not work with {key}: remove {key}")
    if finetuning_args.stage == "sft" and data_args.packing:
        raise UserError("generate_lang_mask does not work with packing in stage: sft: set packing: false")
    training = old_language_of_datasets(data_args.dataset or [], data_args)
    old_language_of_datasets(data_args.eval_dataset or [], data_args)
    if finetuning_args.lpr_loss_coef and not any(training.values()):
        raise UserError(
            f"lpr_loss_coef has nothing to act on: none of the data sets {', '.join(training)} is in an old language; "
            'add one with "language": "old" in dataset_info.json, or name its code in original_languages'
        )


def _check_experts(model_args: Any, finetuning_args: MoeFinetuningArguments) -> None:
    """The expert counts must fit the model's layers, and an adapter that is loaded."""
    from llamafactory.model.loader import load_config

    from neuronmoe_plugins.integrations.llamafactory.adapter import load_or_make_config

    config = load_or_make_config(model_args, finetuning_args)
    key = "layers_to_moe, moe_num_experts" if finetuning_args.expert_list is None else "ada_moe_num_experts_list"
    try:
        config.experts_per_layer(load_config(model_args).get_text_config().num_hidden_layers)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
