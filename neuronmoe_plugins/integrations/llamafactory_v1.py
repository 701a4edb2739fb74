"""LLaMA-Factory's v1 (`USE_V1=1`): `peft_config: {name: moe, ...}`, and the balance loss in its SFT trainer.

The keys are those of `finetuning_type: moe` in v0. v1 reads conversations, no plain text, and no tags of languages, so
that it trains stage 1 alone.

Not in the folder `llamafactory`, whose import is that of v0's arguments.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import wrapt

from neuronmoe_plugins.autoload import HOOKS, require
from neuronmoe_plugins.errors import UserError, did_you_mean
from neuronmoe_plugins.files import read_json
from neuronmoe_plugins.integrations.stand_ins import Call, wrap

if TYPE_CHECKING:
    from neuronmoe_plugins.integrations.llamafactory.arguments import MoeFinetuningArguments
    from neuronmoe_plugins.tuner.metrics import MetricSums

# What v1 is known to train mixtures with.
_KNOWN = """
    model template custom_chat_template trust_remote_code flash_attn model_class init_config peft_config kernel_config
    quant_config train_dataset eval_dataset output_dir micro_batch_size global_batch_size cutoff_len learning_rate
    num_train_epochs max_steps max_grad_norm bf16 batching_strategy batching_workers enable_activation_checkpointing
    dist_config dist_timeout cp_size optim_config lr_scheduler_config seed full_determinism resume_from_checkpoint
    save_steps save_epochs save_ckpt_as_hf save_total_limit logging_steps sample_backend max_new_tokens
"""
KNOWN = frozenset(re.findall(r"\w+", _KNOWN))
# Modules without whose hooks it would train something else.
NEEDED = (
    *("peft.peft_model", "peft.utils."),
    *("llamafactory.v1.core.", "llamafactory.v1.plugins.", "llamafactory.v1.trainers."),
)
REMEDY = "train without USE_V1, with finetuning_type: moe"
# Arguments of v0 that need to know which data set a token comes from.
NEEDS_TAGS = (
    *("lpr_loss_coef", "lpr_double_softmax", "generate_lang_mask", "original_languages"),
    *("classify_loss_coef", "sequential_add_loss_coef", "sequential_add_mask"),
)


def extend_arguments(module: ModuleType) -> None:
    """Post-import hook of `llamafactory.v1.config.arg_parser`: refuse before anything is loaded."""
    wrap(module, {"get_args": _get_args})


def register(module: ModuleType) -> None:
    """Post-import hook of `llamafactory.v1.plugins.model_plugins.peft`."""
    module.PeftPlugin("moe").register()(get_moe_model)


def extend_base_trainer(module: ModuleType) -> None:
    """Post-import hook of `llamafactory.v1.core.base_trainer`: trainers without a hook train no mixture."""
    wrap(module, {"BaseTrainer.__init__(model)": _init_trainer})


def extend_trainer(module: ModuleType) -> None:
    """Post-import hook of `llamafactory.v1.trainers.sft_trainer`, which computes its loss from the logits."""
    wrap(module, {"SFTTrainer.compute_loss": _compute_loss})


def extend_logs(module: ModuleType) -> None:
    """Post-import hook of `llamafactory.v1.utils.callbacks.trainer_callback`."""
    wrap(module, {"CallbackHandler.on_log(logs)": _on_log})


def get_moe_model(model: Any, config: Mapping[str, Any], is_train: bool = False) -> torch.nn.Module:
    """The plugin: put a mixture into a model.

    Args:
        model: A causal language model.
        config: The YAML's `peft_config`.
        is_train: Whether it will be trained; otherwise it needs an adapter.

    Raises:
        UserError: naming the key.
    """
    from neuronmoe_plugins.integrations.llamafactory.adapter import init_moe_adapter

    arguments, paths = read_config(config)
    if not is_train and not paths:
        raise UserError("peft_config: a mixture is served with its adapter: set adapter_name_or_path")
    if not hasattr(model, "prepare_inputs_for_generation"):
        raise UserError(f"peft_config: moe makes mixtures of causal language models, not of a {type(model).__name__}")
    mixture = init_moe_adapter(model, _location(paths), arguments, is_train)
    return mixture if is_train else mixture.requires_grad_(False).eval()


def _location(paths: list[str]) -> SimpleNamespace:
    """What v0 has as model arguments, as far as they tell where an adapter is."""
    names = ("adapter_folder", "cache_dir", "model_revision", "hf_hub_token", "offload_folder")
    return SimpleNamespace(adapter_name_or_path=paths, **dict.fromkeys(names))


def read_config(config: Mapping[str, Any]) -> tuple[MoeFinetuningArguments, list[str]]:
    """Read a `peft_config`; `num_experts` stands for `moe_num_experts` or, as a list, `ada_moe_num_experts_list`.

    Returns:
        The arguments, and the adapter of `adapter_name_or_path` if there is one.

    Raises:
        UserError: on an unknown key, with the nearest name, and on one that v1 has no data for.
    """
    from neuronmoe_plugins.integrations.llamafactory.arguments import MoeFinetuningArguments
    from neuronmoe_plugins.integrations.llamafactory.host_arguments import check_training
    from neuronmoe_plugins.integrations.llamafactory.learning_rates import OWN_RATES

    given = {key: value for key, value in config.items() if key != "name"}
    tagged = [key for key in NEEDS_TAGS if given.get(key)]
    if tagged:
        raise UserError(
            f"peft_config: {', '.join(tagged)}: LLaMA-Factory's v1 has no tags that tell the language of a token: "
            "train this stage without USE_V1, with finetuning_type: moe"
        )
    rates = [key for key in OWN_RATES if given.get(key) is not None]
    if rates:
        raise UserError(f"peft_config: {', '.join(rates)}: v1 has one learning rate for all: remove it, or {REMEDY}")
    inherited = inspect.signature(MoeFinetuningArguments.__mro__[1]).parameters
    known = {*inspect.signature(MoeFinetuningArguments).parameters} - {*inherited}
    known |= {"num_experts", "adapter_name_or_path"}
    for key in given:
        if key not in known:
            raise UserError(f"peft_config: unknown key {key}{did_you_mean(key, known)}")
    paths = given.pop("adapter_name_or_path", None) or []
    paths = paths if isinstance(paths, list) else [paths]
    if len(paths) > 1:
        raise UserError("peft_config: moe takes one adapter in adapter_name_or_path, not several")
    experts = given.pop("num_experts", None)
    if experts is not None:
        key = "moe_num_experts" if isinstance(experts, int) else "ada_moe_num_experts_list"
        if key in given:
            raise UserError(f"peft_config: num_experts and {key} say the same: give one of them")
        given[key] = experts
    check_training(given | {"adapter_name_or_path": paths})
    return MoeFinetuningArguments(finetuning_type="moe", **given), paths


def check_run(model_args: Any, training_args: Any) -> None:
    """Refuse settings of v1 that would fail, or train something else, with a mixture, and an adapter that is not there.

    Raises:
        UserError: naming the key.
    """
    from neuronmoe_plugins.integrations.llamafactory.adapter import load_adapter_config

    paths = read_config(model_args.peft_config)[1]
    if paths:
        load_adapter_config(_location(paths))
    distributed = training_args.dist_config or {}
    if distributed.get("name", "deepspeed") != "deepspeed" or distributed.get("cp_size", 1) > 1:
        raise UserError(f"dist_config: {dict(distributed)} does not train mixtures in v1: {REMEDY}")
    if getattr(training_args, "cp_size", 1) > 1:  # since 0.9.6
        raise UserError(f"cp_size: {training_args.cp_size} does not train mixtures in v1: {REMEDY}")
    if (getattr(training_args, "optim_config", None) or {}).get("name") == "muon":
        raise UserError("optim_config: muon would train the routers alone with Muon, and the experts with AdamW")
    if distributed.get("name") == "deepspeed" and _zero_stage(distributed.get("config_file")) == 3:
        raise UserError(
            f"dist_config: {distributed['config_file']}: mixtures need ZeRO stage 2 or less in v1: {REMEDY}"
        )
    if (model_args.init_config or {}).get("name") == "init_on_meta":
        raise UserError("init_config: init_on_meta leaves experts nothing to copy: remove it")
    if (model_args.kernel_config or {}).get("name") == "liger_kernel":
        raise UserError(f"kernel_config: v1 cannot put liger_kernel into a PEFT model: remove it, or {REMEDY}")


def _zero_stage(file: str | None) -> int | None:
    """The stage in a DeepSpeed configuration; v1 itself complains if there is none to read."""
    if file is None or not Path(file).is_file():
        return None
    stage: int | None = read_json(Path(file)).get("zero_optimization", {}).get("stage")
    return stage


def _get_args(call: Call) -> Any:
    """Stand in for `get_args(args)`."""
    parsed = call.host()
    model_args, training_args = parsed[0], parsed[2]
    if (model_args.peft_config or {}).get("name") == "moe":
        require(*(name for name in HOOKS if name.startswith(NEEDED)))
        check_run(model_args, training_args)
        check_fields(parsed)
    return parsed


def check_fields(parsed: Sequence[Any]) -> None:
    """Refuse arguments of a later v1, but for those that `moe_allow_arguments` in the `peft_config` lets through.

    Args:
        parsed: The dataclasses of the command's arguments, those of the model first.

    Raises:
        UserError: naming the arguments.
    """
    from llamafactory.v1.utils import logging

    from neuronmoe_plugins.integrations.llamafactory.host_arguments import ALLOWED, check_unknown, default_of

    values = [(field, getattr(arguments, field.name)) for arguments in parsed for field in fields(arguments)]
    given = {field.name: value for field, value in values if field.init and value != default_of(field)}
    allowed = {ALLOWED: parsed[0].peft_config.get(ALLOWED)}
    for warning in check_unknown(given | allowed, [field for field, _ in values], KNOWN):
        logging.get_logger("llamafactory.v1.neuronmoe").warning_rank0(warning)


def _init_trainer(call: Call) -> None:
    """Stand in for the constructor of all trainers: the loss of one that is not extended lacks the mixture's."""
    from neuronmoe_plugins.integrations.transformers import find_objective

    kind = type(call.instance)
    extended = isinstance(inspect.getattr_static(kind, "compute_loss", None), wrapt.FunctionWrapper)
    if not extended and find_objective(call.arguments["model"]) is not None:
        raise UserError(f"peft_config: {kind.__name__} of v1 would train moe without the mixture's losses: use sft")
    call.host()


def _compute_loss(call: Call) -> Any:
    """Stand in for `compute_loss(batch)`, which the trainer scales by the batch's share of the labels."""
    from neuronmoe_plugins.integrations.transformers import find_objective, with_mixture_losses

    return with_mixture_losses(call.host(), find_objective(call.instance.model))


def _on_log(call: Call) -> None:
    """Stand in for `on_log(args, state, logs)`, which every process calls: add the mixture's losses."""
    from neuronmoe_plugins.integrations.transformers import find_objective

    trainer = call.instance.trainer
    objective = None if trainer is None else find_objective(trainer.model)
    if objective is not None:
        call.arguments["logs"].update(_over_processes(objective.metrics.pop()))
    call.host()


def _over_processes(sums: MetricSums) -> dict[str, float]:
    """What this process added up -> means over all of them."""
    from llamafactory.v1.accelerator.helper import ReduceOp
    from llamafactory.v1.accelerator.interface import DistributedInterface

    losses = {name: pair for name, pair in sums.losses.items() if pair[1]}
    totals, numbers = (
        DistributedInterface().all_reduce([pair[i] for pair in losses.values()], op=ReduceOp.SUM) for i in (0, 1)
    )
    return {name: total / number for name, total, number in zip(losses, totals, numbers, strict=True)}
