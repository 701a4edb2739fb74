"""How a run of LLaMA-Factory will train, as far as its memory depends on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from llamafactory.train.callbacks import ReporterCallback

from neuronmoe_plugins.tuner.memory import OptimizerStates, Setup

# What the optimizers of `optim` keep. bitsandbytes' 8-bit ones have a float32 scale for every 256 elements.
EIGHT_BITS = 1 + 4 / 256
OPTIMIZERS = {
    "adamw_torch": OptimizerStates(2),
    "adamw_torch_fused": OptimizerStates(2),
    "paged_adamw_32bit": OptimizerStates(2, 4),
    "adamw_bnb_8bit": OptimizerStates(2, EIGHT_BITS),
    "adamw_8bit": OptimizerStates(2, EIGHT_BITS),
    "paged_adamw_8bit": OptimizerStates(2, EIGHT_BITS),
    "lion_32bit": OptimizerStates(1, 4),
    "paged_lion_32bit": OptimizerStates(1, 4),
    "lion_8bit": OptimizerStates(1, EIGHT_BITS),
    "paged_lion_8bit": OptimizerStates(1, EIGHT_BITS),
    "adagrad": OptimizerStates(1),
    "rmsprop": OptimizerStates(1),
    "sgd": OptimizerStates(0),
}

# Arguments of the host that put another optimizer in the place of `optim`.
OTHER_OPTIMIZERS = ("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon")


def setup_of(trainer: Any, reporter: ReporterCallback | None) -> Setup:
    """The setup of a trainer that is about to train.

    Args:
        trainer: The host's trainer.
        reporter: The host's callback that knows the model and data arguments, which the trainer is not given.
    """
    args, plugins = trainer.args, trainer.accelerator.state
    config = plugins.deepspeed_plugin.hf_ds_config if trainer.is_deepspeed_enabled else None
    setup = Setup(
        _optimizer(args, trainer.finetuning_args, config),
        num_processes=args.world_size,
        keeps_gradients=args.gradient_accumulation_steps > 1,
        num_tokens=_num_tokens(trainer, reporter),
        num_logits=trainer.model.config.get_text_config().vocab_size,
    )
    if config is not None:
        stage = config.get_value("zero_optimization.stage", 0)
        return replace(
            setup,
            shares_weights=stage >= 3,
            shares_gradients=stage >= 2,
            shares_optimizer=stage >= 1,
            compute_dtype=torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32,
            offloads_optimizer=config.get_value("zero_optimization.offload_optimizer.device", "none") != "none",
        )
    if trainer.is_fsdp_enabled:
        # True, or the name of a strategy of FSDP's first version.
        gathered = plugins.fsdp_plugin.sharding_strategy or plugins.fsdp_plugin.reshard_after_forward
        strategy = getattr(gathered, "name", str(gathered))
        shares, shares_weights = strategy != "NO_SHARD", strategy in ("True", "FULL_SHARD")
        return replace(setup, shares_weights=shares_weights, shares_gradients=shares, shares_optimizer=shares)
    return replace(setup, has_buckets=args.world_size > 1)


def _optimizer(args: Any, finetuning_args: Any, config: Any) -> OptimizerStates | None:
    """What the run's optimizer keeps, if it is known; the DeepSpeed configuration may name another one."""
    replaced = any(getattr(finetuning_args, name) for name in OTHER_OPTIMIZERS)
    in_file = config is not None and config.get_value("optimizer.type") is not None
    if replaced or in_file or args.optim_args:
        return None
    return OPTIMIZERS.get(str(getattr(args.optim, "value", args.optim)))


def _num_tokens(trainer: Any, reporter: ReporterCallback | None) -> int | None:
    """Tokens of the largest micro-batch; None where their activations follow no simple formula."""
    if reporter is None or not trainer.model.is_gradient_checkpointing or reporter.model_args.enable_liger_kernel:
        return None
    return int(trainer.args.per_device_train_batch_size * reporter.data_args.cutoff_len)
