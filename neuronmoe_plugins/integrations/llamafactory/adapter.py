"""Creates or loads the `moe` adapter where LLaMA-Factory initialises adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from llamafactory.extras import logging
from peft import PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from peft.utils import CONFIG_NAME
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from neuronmoe_plugins.blocks import block_name, block_order
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.host_versions import trains_rows_of_heads
from neuronmoe_plugins.integrations.llamafactory.adapter_fit import require_there
from neuronmoe_plugins.integrations.llamafactory.arguments import MoeFinetuningArguments
from neuronmoe_plugins.integrations.llamafactory.experts import apply_experts, drops_classifiers, new_adapter_experts
from neuronmoe_plugins.integrations.llamafactory.memory import num_elements
from neuronmoe_plugins.integrations.stand_ins import Call
from neuronmoe_plugins.models import new_token_rows
from neuronmoe_plugins.tuner import MixtureLayer, MoeConfig
from neuronmoe_plugins.tuner.checkpoint import CLASSIFIER
from neuronmoe_plugins.tuner.config import LOSS_COEFFICIENTS
from neuronmoe_plugins.tuner.fingerprint import refused_on_other_base
from neuronmoe_plugins.tuner.plans import LayerPlan
from neuronmoe_plugins.tuner.saved_modules import TokenIndices, is_added, tensors_in_file

# Fields of the configuration that never come from the adapter, under the same names in the arguments.
FROM_ARGUMENTS = (*LOSS_COEFFICIENTS, "aux_loss_per_sequence", "lpr_double_softmax", "train_only_router")
# Those that come from it unless they are given.
FROM_ARGUMENTS_IF_GIVEN = ("topk", "experts_implementation")
# A child of the host's logger, which alone has a handler and a level.
logger = logging.get_logger("llamafactory.neuronmoe")


@refused_on_other_base()
def init_moe_adapter(
    model: PreTrainedModel, model_args: Any, finetuning_args: MoeFinetuningArguments, is_trainable: bool
) -> torch.nn.Module:
    """Put the adapter of `adapter_name_or_path`, or a new one, into the base model.

    Args:
        model: The base model.
        model_args: The host's model arguments.
        finetuning_args: Fine-tuning arguments with `finetuning_type: moe`.
        is_trainable: Whether the model will be trained. Then the trainable parameters become float32, unless
            `pure_bf16` or ZeRO-3 forbids, as the host does for its own methods.

    Raises:
        UserError: if there is no adapter to run inference with, or the adapter is of another kind or base model.
        ValueError: if the expert counts do not fit the model.
    """
    if not is_trainable and not model_args.adapter_name_or_path:
        raise UserError("finetuning_type: moe without training needs an adapter: set adapter_name_or_path")
    if finetuning_args.run is not None:
        config = finetuning_args.run.new_config()
    else:
        num_layers = model.config.get_text_config().num_hidden_layers
        config = load_or_make_config(model_args, finetuning_args, num_layers, new_token_rows(model.config))
    if model_args.adapter_name_or_path:
        path, location = model_args.adapter_name_or_path[-1], adapter_location(model_args)
        mixture: torch.nn.Module
        new = new_saved_modules(finetuning_args)
        if new or drops_classifiers(finetuning_args):
            # The file has the language-group classifiers still, which the configuration no longer has, or it lacks
            # modules that are new.
            config.inference_mode = not is_trainable
            mixture = get_peft_model(model, config)
            weights = load_peft_weights(path, device="cpu", **location)
            if drops_classifiers(finetuning_args):
                weights = {name: weight for name, weight in weights.items() if CLASSIFIER not in name}
            start = tensors_in_file(mixture, "default", new)
            weights |= {name: weight.detach() for name, (_, weight) in start.items()}
            set_peft_model_state_dict(mixture, weights)
        else:
            location["offload_folder"] = model_args.offload_folder
            mixture = PeftModel.from_pretrained(model, path, config=config, is_trainable=is_trainable, **location)
        logger.info_rank0(f"Loaded adapter(s): {path}")
    else:
        mixture = get_peft_model(model, config)
    if is_trainable and not finetuning_args.pure_bf16 and not is_deepspeed_zero3_enabled():
        for parameter in mixture.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
    logger.info_rank0(describe_mixture(mixture))
    return mixture


def load_or_make_config(
    model_args: Any, finetuning_args: MoeFinetuningArguments, num_layers: int, new_rows: TokenIndices | None = None
) -> MoeConfig:
    """As :func:`make_config`, with the adapter of `model_args`, if there is one."""
    path = (model_args.adapter_name_or_path or [None])[-1]
    saved = None if path is None else load_adapter_config(model_args)
    return make_config(finetuning_args, num_layers, path, saved, new_rows)


def make_config(
    finetuning_args: MoeFinetuningArguments,
    num_layers: int,
    path: str | None,
    saved: MoeConfig | None,
    new_rows: TokenIndices | None,
) -> MoeConfig:
    """The configuration of a run's adapter, a saved one or a new one.

    An adapter keeps its experts unless it is extended; the losses and what is trained always follow the arguments.

    Args:
        finetuning_args: Fine-tuning arguments with `finetuning_type: moe`.
        num_layers: Decoder layers of the base model.
        path: Where the adapter is, for errors; None for a new one.
        saved: The adapter's configuration, which stays as it is.
        new_rows: The rows of the base model's new tokens, if it has any.

    Raises:
        UserError: if the adapter's experts are not those asked for.
    """
    training: dict[str, Any] = {name: getattr(finetuning_args, name) for name in FROM_ARGUMENTS}
    for name in FROM_ARGUMENTS_IF_GIVEN:
        if getattr(finetuning_args, name) is not None:
            training[name] = getattr(finetuning_args, name)
    try:
        if saved is None:
            training["modules_to_save"] = finetuning_args.additional_target
            training["trainable_token_indices"] = _rows_to_train(finetuning_args, new_rows, path, new_rows)
            return MoeConfig(task_type="CAUSAL_LM", **new_adapter_experts(finetuning_args), **training)
        config = copy.deepcopy(saved)
        apply_experts(config, finetuning_args, str(path), num_layers)
        config.modules_to_save = _modules_to_save(config, finetuning_args, str(path))
        _rows_to_train(finetuning_args, new_rows, path, config.trainable_token_indices)
        for name, value in training.items():
            setattr(config, name, value)
        config.__post_init__()
        return config
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"finetuning_type: moe: {error}") from error


def _modules_to_save(config: MoeConfig, finetuning_args: MoeFinetuningArguments, path: str) -> list[str] | None:
    """The modules that an adapter has saved, and those of `additional_target`, which start as the base model's."""
    asked, present = finetuning_args.additional_target, config.modules_to_save or []
    if not asked:
        return config.modules_to_save
    if finetuning_args.train_only_router:
        raise UserError(
            "additional_target has no effect with train_only_router, which keeps what the adapter has saved beside its "
            "experts as it is: remove the key"
        )
    unnamed = [name for name in present if name not in asked]
    if unnamed:
        raise UserError(
            f"additional_target is {','.join(asked)}, but the adapter in {path} has saved {','.join(unnamed)}, too: "
            "remove the key, an adapter brings its own modules, or name all of them"
        )
    return list(asked)


def _rows_to_train(
    finetuning_args: MoeFinetuningArguments,
    new_rows: TokenIndices | None,
    path: str | None,
    in_adapter: TokenIndices | None,
) -> TokenIndices | None:
    """The rows that `train_new_tokens` asks for; an adapter that is loaded brings its own."""
    if finetuning_args.new_token_learning_rate is not None:
        if finetuning_args.train_only_router:
            raise UserError("new_token_learning_rate has no effect with train_only_router: remove the key")
        if not finetuning_args.train_new_tokens and (path is None or in_adapter is None):
            raise UserError("new_token_learning_rate has no effect without train_new_tokens: true")
    if not finetuning_args.train_new_tokens:
        return None
    if new_rows is None:
        raise UserError(
            "train_new_tokens: the base model has no new tokens: extend it by `neuronmoe vocabulary` first, and name "
            "that one"
        )
    if isinstance(new_rows, dict) and not trains_rows_of_heads():
        raise UserError(
            "train_new_tokens: the base model's head has rows of its own, which this version of peft cannot train: "
            "install peft 0.18 or later"
        )
    if finetuning_args.train_only_router:
        raise UserError(
            "train_new_tokens has no effect with train_only_router, which keeps the rows as stage 1 has saved them: "
            "remove the key"
        )
    if in_adapter is None:
        raise UserError(
            f"train_new_tokens: the adapter in {path} has no rows of new tokens, with which one has to start: remove "
            "the key, or train a new adapter"
        )
    return new_rows


def new_saved_modules(finetuning_args: MoeFinetuningArguments) -> list[str]:
    """The modules of `additional_target` that the adapter of `adapter_name_or_path` has not saved."""
    run = finetuning_args.run
    present = (run.saved.modules_to_save if run is not None and run.saved is not None else None) or []
    return [name for name in finetuning_args.additional_target or [] if name not in present]


def describe_mixture(model: torch.nn.Module) -> str:
    """One line for the log: mixture layers, experts, and parameters added and trainable."""
    plans = {m.block: m.plans[m.active_adapters[0]] for m in model.modules() if isinstance(m, MixtureLayer)}
    blocks = sorted(plans, key=block_order)
    experts = ", ".join(f"{block_name(block)}: {plans[block].num_experts}" for block in blocks)
    added = [parameter for name, parameter in model.named_parameters() if is_added(name)]
    trainable = num_elements(parameter for parameter in added if parameter.requires_grad)
    return (
        f"Fine-tuning method: MoE. {len(plans)} mixture layers, experts per layer with the base MLP: {{{experts}}}"
        f"{of_rank(plans.values())}; {num_elements(added):,} new parameters, {trainable:,} trainable"
    )


def of_rank(plans: Iterable[LayerPlan]) -> str:
    """The ranks of the experts, as in " of rank 4 to 8"; nothing of copies."""
    ranks = sorted({plan.expert_rank for plan in plans if plan.expert_rank is not None})
    return f" of rank {' to '.join(map(str, dict.fromkeys((ranks[0], ranks[-1]))))}" if ranks else ""


def init_adapter(call: Call) -> Any:
    """Stand in for `init_adapter(config, model, model_args, finetuning_args, is_trainable)`."""
    names = ("model", "model_args", "finetuning_args", "is_trainable")
    return init_moe_adapter(*(call.arguments[name] for name in names))


def adapter_location(model_args: Any) -> dict[str, Any]:
    """Where the host looks for adapters."""
    return {
        "subfolder": model_args.adapter_folder,
        "cache_dir": model_args.cache_dir,
        "revision": model_args.model_revision,
        "token": model_args.hf_hub_token,
    }


def load_adapter_config(model_args: Any) -> MoeConfig:
    """The configuration in `adapter_name_or_path`, as it was saved.

    Raises:
        UserError: if there is none, or it is that of another kind of adapter.
    """
    path = model_args.adapter_name_or_path[-1]
    file = Path(model_args.adapter_folder or "", CONFIG_NAME)
    require_there("adapter_name_or_path", path, str(file), model_args)
    try:
        config = MoeConfig.from_pretrained(path, **adapter_location(model_args))
    except (ValueError, OSError) as error:
        raise UserError(f"adapter_name_or_path: no adapter in {path} ({error}); train stage 1 first") from error
    if not isinstance(config, MoeConfig):
        raise UserError(f"adapter_name_or_path: {path} holds a {config.peft_type} adapter, not a MOE one")
    return config


def create_ref_model(call: Call) -> Any:
    """Stand in for `create_ref_model(model_args, finetuning_args, add_valuehead)`.

    The host loads the model's own adapter as LoRA and merges it, which a mixture refuses. A new mixture equals its base
    model, which the host loads, and so does a `ref_model` of the user's.
    """
    model_args, finetuning_args = call.arguments["model_args"], call.arguments["finetuning_args"]
    if not model_args.adapter_name_or_path or finetuning_args.ref_model is not None:
        return call.host()
    from llamafactory.model import load_model, load_tokenizer

    copied = copy.copy(model_args)  # loading changes it
    as_it_was = MoeFinetuningArguments(finetuning_type="moe", stage=finetuning_args.stage)
    run = finetuning_args.run
    as_it_was.run = None if run is None else run.with_arguments(as_it_was)
    return load_model(load_tokenizer(copied)["tokenizer"], copied, as_it_was, is_trainable=False)
