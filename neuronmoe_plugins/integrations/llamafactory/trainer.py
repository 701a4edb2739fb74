"""Hooks on LLaMA-Factory's trainers: the collator that pads the token tags, and losses and routing in every log."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import wrapt
from llamafactory.train.callbacks import LogCallback

from neuronmoe_plugins.integrations.llamafactory.token_tags import TokenTagCollator
from neuronmoe_plugins.tuner import MoeLayer

# The trainer of each stage's module.
TRAINERS = {"llamafactory.train.pt.trainer": "CustomTrainer", "llamafactory.train.sft.trainer": "CustomSeq2SeqTrainer"}

LOSSES = ("lm_loss", "aux_loss", "lpr_loss", "classify_loss", "sequential_add_loss")


def extend_trainer(module: ModuleType) -> None:
    """Let the trainer of `module` feed the token tags and log the mixture."""
    name = TRAINERS[module.__name__]
    wrapt.wrap_function_wrapper(module, f"{name}.__init__", _init)
    wrapt.wrap_function_wrapper(module, f"{name}.log", _log)


def mean_metrics(trainer: Any) -> dict[str, float]:
    """The tuner's metrics since the last log, as means over the tokens of all processes.

    Every process has to call this; the names are in the order of the log.
    """
    layers = sorted(m.layer_index for m in trainer.model.modules() if isinstance(m, MoeLayer))
    names = [*LOSSES]
    names += [f"{share}/layer_{layer}" for share in ("expert0_share", "expert0_share_old") for layer in layers]
    local = trainer.model.base_model.pop_metric_sums()
    sums = torch.tensor([local.get(name, (0, 0)) for name in names], dtype=torch.float64)
    sums = sums.to(trainer.accelerator.device)
    totals = trainer.accelerator.reduce(sums, reduction="sum").tolist()
    return {name: total / number for name, (total, number) in zip(names, totals, strict=True) if number}


def _init(wrapped: Callable[..., None], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Stand in for the trainer's constructor, which the host calls with keywords."""
    if kwargs["finetuning_args"].finetuning_type != "moe":
        wrapped(*args, **kwargs)
        return
    kwargs["data_collator"] = TokenTagCollator(kwargs["data_collator"])
    wrapped(*args, **kwargs)
    for callback in kwargs.get("callbacks") or []:
        if isinstance(callback, LogCallback):
            _extend_trainer_log(callback, instance)


def _log(wrapped: Callable[..., None], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Stand in for `Trainer.log(logs, ...)`, which every process calls at every logging step."""
    logs = args[0] if args else kwargs["logs"]
    if instance.finetuning_args.finetuning_type == "moe" and "loss" in logs:
        logs.update(mean_metrics(instance))
    wrapped(*args, **kwargs)


def _extend_trainer_log(callback: LogCallback, trainer: Any) -> None:
    """Write the mixture's values into trainer_log.jsonl too; the host's callback picks a fixed set of keys."""
    write = callback._write_log

    def write_with_metrics(output_dir: str, logs: dict[str, Any]) -> None:
        if "loss" in logs:
            # By step: the host writes from a thread, which may run after the next log.
            history = (entry for entry in reversed(trainer.state.log_history) if "loss" in entry)
            entry = next(entry for entry in history if entry["step"] == logs["current_steps"])
            logs |= {name: value for name, value in entry.items() if _is_metric(name)}
        write(output_dir, logs)

    callback._write_log = write_with_metrics


def _is_metric(name: str) -> bool:
    return name in LOSSES or name.startswith("expert0_share")
