"""What must hold before anything is loaded; each failure is one line that names the key."""

from __future__ import annotations

import copy
import os
from typing import Any

from transformers.integrations import is_deepspeed_zero3_enabled

from neuronmoe_plugins.autoload import HOOKS, outcomes, require
from neuronmoe_plugins.blocks import find_blocks
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.feed_forward import find_feed_forwards
from neuronmoe_plugins.host_versions import fsdp_settings
from neuronmoe_plugins.integrations.llamafactory.arguments import (
    MoeDataArguments,
    MoeFinetuningArguments,
    given_moe_arguments,
)
from neuronmoe_plugins.integrations.llamafactory.data_sets import check_datasets, packing_note
from neuronmoe_plugins.integrations.llamafactory.experts import OLD_EXPERTS
from neuronmoe_plugins.integrations.llamafactory.given_arguments import Given, is_moe, read_given
from neuronmoe_plugins.integrations.llamafactory.host_arguments import (
    check_host_arguments,
    check_inference,
    check_task,
    check_training,
)
from neuronmoe_plugins.integrations.llamafactory.run import MoeRun
from neuronmoe_plugins.integrations.llamafactory.tags import GROUP, check_languages, check_mixing, check_saved_tags
from neuronmoe_plugins.tuner.config import LOSS_COEFFICIENTS
from neuronmoe_plugins.tuner.experts.weights import check_rank
from neuronmoe_plugins.tuner.saved_modules import check_modules

# Modules of hosts without whose hooks a run would train something else, or not at all.
NEEDED = ("peft.peft_model", "peft.utils.", "llamafactory.hparams.", "llamafactory.data.", "llamafactory.model.")
NEEDED_TO_TRAIN = ("transformers.trainer", "llamafactory.train.")
NEEDED_FOR_ROWS = "peft.tuners.trainable_tokens.layer"


def check_train_command(given: Given | list[str], classes: list[type]) -> MoeRun | None:
    """Check the arguments of `train`, before the host makes anything of them.

    Args:
        given: What the host's `read_args` returns.
        classes: The dataclasses that the command's arguments are parsed into.

    Returns:
        The run; None if it is not a `moe` one.

    Raises:
        UserError: naming the keys.
    """
    run = _read_run(given, classes)
    if run is None:
        return None
    check_task(run.given)
    if not run.trains:
        check_inference(run.given)
    _check_run(run)
    return run


def check_inference_command(given: Given | list[str], classes: list[type]) -> MoeRun | None:
    """As :func:`check_train_command`, for the commands that only use a model."""
    run = _read_run(given, classes)
    if run is None:
        return None
    check_inference(run.given)
    _check_run(run)
    stage = run.finetuning_args.stage
    if run.model_args.export_dir is None and stage != "sft":
        raise UserError(f"stage: {stage} does not chat: remove the key, which is for training")
    return run


def check_method(model_args: Any, data_args: MoeDataArguments, finetuning_args: MoeFinetuningArguments) -> None:
    """Refuse arguments of `moe` with another method, and what `moe` cannot run with.

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
    if len(model_args.adapter_name_or_path or []) > 1:
        raise UserError("finetuning_type: moe takes one adapter in adapter_name_or_path, not several")


def _read_run(given: Given | list[str], classes: list[type]) -> MoeRun | None:
    written = read_given(given, classes)
    if not is_moe(written):
        return None
    if written.get("enable_liger_kernel"):
        require(*(name for name in outcomes if name.startswith("liger_kernel.")))
    warnings = check_host_arguments(written, classes)
    if not written.get("model_name_or_path"):
        raise UserError("model_name_or_path is missing: name the folder or the hub name of the base model")
    if isinstance(written.get("adapter_name_or_path"), list):
        raise UserError("adapter_name_or_path must be one folder or hub name, not a list")
    run = MoeRun.read(written)
    run.warnings += warnings
    return run


def check_hooks(trains: bool) -> None:
    """Refuse a run without one of its hooks, before it trains something else.

    Args:
        trains: Whether the command is one that trains; it has imported the host's trainers then.

    Raises:
        UserError: naming the first module of a host that could not be extended, and why.
    """
    needed = NEEDED + NEEDED_TO_TRAIN if trains else NEEDED
    require(*(name for name in HOOKS if name.startswith(needed)))


def _check_run(run: MoeRun) -> None:
    check_method(run.model_args, run.data_args, run.finetuning_args)
    if run.trains:
        check_training(run.given)
        # Router logits recorded under reentrant checkpointing have no gradient.
        losses = [name for name in LOSS_COEFFICIENTS if getattr(run.finetuning_args, name)]
        for key in ("use_reentrant_gc", "use_unsloth_gc"):
            if losses and run.given.get(key) and not run.model_args.disable_gradient_checkpointing:
                raise UserError(
                    f"{key}: true runs the forward without gradients, so {' and '.join(losses)} would have none; "
                    f"set {key}: false"
                )
        check_datasets(run.data_args)
        if run.data_args.generate_lang_mask:
            notes, warnings = check_languages(run.data_args, run.finetuning_args)
            run.notes += notes
            run.warnings += warnings
        check_saved_tags(run.data_args)
        check_mixing(run.data_args, run.finetuning_args, run.given)
        packed = packing_note(run.finetuning_args.stage, run.data_args)
        run.notes += [packed] if packed else []
    _check_experts(run)
    # Classifiers read the mean of a sequence's real tokens, which the mask of `neat_packing` does not tell.
    if run.trains and run.data_args.neat_packing and run.config.group_nums:
        raise UserError(
            "group_nums does not work with neat_packing, which packs conversations of several groups into one sequence "
            "whose padding the classifiers cannot see: set packing: false"
        )
    if run.trains and run.data_args.sequential_add_mask:
        _check_groups(run)


def _check_groups(run: MoeRun) -> None:
    """Every data set has a group that the classifiers know, and that has experts where tokens are drawn to them."""
    data_args, plans = run.data_args, run.plans.values()
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
        if run.config.sequential_add_loss_coef and not has_experts[min(group, 2)]:
            raise UserError(
                f"sequential_add_loss_coef draws the tokens of {name} to no expert: its group {group} has those beyond "
                "old_moe_num_experts_list, and there are none"
            )


def _check_experts(run: MoeRun) -> None:
    """The expert counts must fit the model's layers, and an adapter that is loaded, which must be one of the model."""
    # Not at the top: it imports more of the host, whose arguments are being imported when this module is.
    from neuronmoe_plugins.integrations.llamafactory.adapter_fit import check_adapter_fits, empty_base_model

    _check_plans(run)
    if not run.trains:
        _check_old_experts(run)
    base = empty_base_model(run.model_args, run.base_config)
    if base is not None:
        _check_blocks(run, base)
    if base is not None and run.saved is not None:
        run.warnings += check_adapter_fits(run.model_args, run.base_config, base, copy.deepcopy(run.saved))


def _check_blocks(run: MoeRun, base: Any) -> None:
    """The model has what `moe_targets` names, for deltas of that rank, and `additional_target` names no mixtures."""
    try:
        blocks = find_blocks(base, find_feed_forwards(base), run.config.targets)
    except ValueError as error:
        raise UserError(f"moe_targets is {run.config.targets}: {error}") from None
    blocks = [block for block in blocks if block.layer in run.plans]
    try:
        for block in blocks:
            for name in block.family.projections:
                shape = base.get_submodule(f"{block.name}.{name}").weight.shape
                check_rank(run.plans[block.layer].expert_rank, f"{block.name}.{name}", shape)
    except ValueError as error:
        raise UserError(f"moe_{error}") from None
    if not run.finetuning_args.additional_target:
        return
    try:
        check_modules(run.config, base, [block.name for block in blocks])
    except ValueError as error:
        raise UserError(str(error).replace("modules_to_save", "additional_target")) from None


def _check_old_experts(run: MoeRun) -> None:
    """Without training, older experts matter to classifiers alone."""
    if run.finetuning_args.old_expert_list is None or run.saved is None:
        return
    before = run.saved.layer_plans(run.num_layers)
    if [plan.num_experts for plan in run.plans.values()] != [plan.num_experts for plan in before.values()]:
        raise UserError(f"{OLD_EXPERTS} would extend the adapter by experts that learn nothing: set do_train: true")
    if not run.config.group_nums:
        raise UserError(
            f"{OLD_EXPERTS} has no effect without training, since the adapter has no classifiers: remove it"
        )


def _check_plans(run: MoeRun) -> None:
    arguments, num_layers = run.finetuning_args, run.num_layers
    key = "layers_to_moe, moe_num_experts" if arguments.expert_list is None else "ada_moe_num_experts_list"
    try:
        plans = run.plans
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
    most = max(plan.num_experts for plan in plans.values())
    if arguments.topk is not None and arguments.topk > most:
        raise UserError(f"topk is {arguments.topk}, but no layer has more than {most} experts")
    counts, layers = arguments.expert_list, arguments.moe_layers
    if counts is not None and layers is not None and len(counts) == num_layers > len(layers):
        ignored = [layer for layer, count in enumerate(counts) if count > 1 and layer not in layers]
        if ignored:
            raise UserError(
                f"ada_moe_num_experts_list gives experts to layers {ignored}, which layers_to_moe {layers} leaves out: "
                "remove layers_to_moe"
            )


def check_rows(run: MoeRun) -> None:
    """Refuse rows of new tokens under ZeRO-3 without the hook by which they are read there.

    Raises:
        UserError: naming the host's module, and why it could not be extended.
    """
    if run.config.trainable_token_indices and is_deepspeed_zero3_enabled():
        require(NEEDED_FOR_ROWS)


def check_launcher(training_args: Any) -> None:
    """Refuse settings of FSDP under which training would fail, or end without an adapter.

    Args:
        training_args: The host's training arguments; accelerate passes its settings on in the environment.

    Raises:
        UserError: naming the key.
    """
    settings = fsdp_settings(training_args)
    if settings is None and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    version = (settings or {}).get("fsdp_version") or int(os.environ.get("FSDP_VERSION", "1"))
    if version != 2:
        raise UserError(
            "fsdp_version: 1 wraps each router by itself, apart from its experts: set fsdp_version: 2, as in "
            "recipes/accelerate/fsdp.yaml"
        )
    state_dict_type = os.environ.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")
    if state_dict_type.upper() != "FULL_STATE_DICT":
        raise UserError(
            f"fsdp_state_dict_type: {state_dict_type} saves no adapter at the end: set fsdp_state_dict_type: "
            "FULL_STATE_DICT, or FSDP_STATE_DICT_TYPE=FULL_STATE_DICT in the environment"
        )
