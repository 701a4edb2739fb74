"""Hooks on LLaMA-Factory's trainers: the collator that pads the token tags, and what a run logs about the mixture."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt
from llamafactory.train.callbacks import LogCallback
from transformers import PrinterCallback, ProgressCallback

from neuronmoe_plugins.integrations.llamafactory.run_log.log import LOSSES, RoutingLog, log_start_table
from neuronmoe_plugins.integrations.llamafactory.saving import ResumedLogs, extend_saving
from neuronmoe_plugins.integrations.llamafactory.token_tags import TokenTagCollator

# The trainer of each stage's module.
TRAINERS = {"llamafactory.train.pt.trainer": "CustomTrainer", "llamafactory.train.sft.trainer": "CustomSeq2SeqTrainer"}

# Values in every log but the console's, where one for each expert would be too many to read.
EXPERT_SHARES = "expert_share/"

THREADS_SECONDS = 0.5


def extend_trainer(module: ModuleType) -> None:
    """Let the trainer of `module` feed the token tags and log the mixture."""
    name = TRAINERS[module.__name__]
    wrapt.wrap_function_wrapper(module, f"{name}.__init__", _init)
    wrapt.wrap_function_wrapper(module, f"{name}.log", _log)
    wrapt.wrap_function_wrapper(module, f"{name}.save_state", _save_state)
    extend_saving(module, name)


def _init(wrapped: Callable[..., None], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Stand in for the trainer's constructor, which the host calls with keywords."""
    if kwargs["finetuning_args"].finetuning_type != "moe":
        wrapped(*args, **kwargs)
        return
    kwargs["data_collator"] = TokenTagCollator(kwargs["data_collator"])
    wrapped(*args, **kwargs)
    for callback in instance.callback_handler.callbacks:
        if isinstance(callback, LogCallback):
            _extend_trainer_log(callback, instance)
        elif isinstance(callback, PrinterCallback | ProgressCallback):
            _shorten_console(callback)
    if instance.args.do_train:
        # First: it restores what the other one goes on from.
        instance.add_callback(ResumedLogs(instance))
        instance.moe_routing_log = RoutingLog(instance)
        instance.add_callback(instance.moe_routing_log)
        log_start_table(instance)


def _log(wrapped: Callable[..., None], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Stand in for `Trainer.log(logs, ...)`, which every process calls at every logging step."""
    logs = args[0] if args else kwargs["logs"]
    if instance.finetuning_args.finetuning_type == "moe" and "loss" in logs:
        logs.update(instance.moe_routing_log.log_step().means())
    wrapped(*args, **kwargs)


def _save_state(wrapped: Callable[..., None], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Stand in for `save_state()`, which the host calls when a finished training's model is saved."""
    wrapped(*args, **kwargs)
    if instance.finetuning_args.finetuning_type == "moe":
        _let_go_of_tensors(instance)
        instance.moe_routing_log.write()


def _let_go_of_tensors(trainer: Any) -> None:
    """Wait until no thread of the process group holds a tensor of Python's.

    Gloo's threads need the interpreter for that, and a process that ends while one waits for it aborts. That all
    processes have met does not say that their threads are through, and nothing else does: they get half a second.
    """
    trainer.accelerator.wait_for_everyone()
    if trainer.args.world_size > 1:
        time.sleep(THREADS_SECONDS)


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


def _shorten_console(callback: PrinterCallback | ProgressCallback) -> None:
    """Keep the experts' shares out of what a callback prints."""
    on_log = callback.on_log

    def on_short_log(args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> Any:
        long = [name for name in logs if name.startswith(EXPERT_SHARES)]
        shown = {name: value for name, value in logs.items() if name not in long} if long else logs
        return on_log(args, state, control, logs=shown, **kwargs)

    callback.on_log = on_short_log  # type: ignore[method-assign,assignment]


def _is_metric(name: str) -> bool:
    return name in LOSSES or name.startswith(("expert0_share", EXPERT_SHARES))
