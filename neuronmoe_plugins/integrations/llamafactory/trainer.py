"""LLaMA-Factory's trainers: the collator that pads the token tags, and what a run logs about the mixture."""

from __future__ import annotations

import time
from typing import Any

from llamafactory.train.callbacks import LogCallback
from transformers import PrinterCallback, ProgressCallback

from neuronmoe_plugins.integrations.llamafactory.run_log.log import LOSSES, RoutingLog, log_start_table
from neuronmoe_plugins.integrations.llamafactory.saving import ResumedLogs
from neuronmoe_plugins.integrations.llamafactory.token_tags import TokenTagCollator
from neuronmoe_plugins.integrations.stand_ins import Call

# Values in every log but the console's, where one for each expert would be too many to read.
EXPERT_SHARES = "expert_share/"

THREADS_SECONDS = 0.5


def begin(call: Call) -> None:
    """Stand in for the trainer's constructor, which the host calls with keywords."""
    trainer = call.instance
    call.host(data_collator=TokenTagCollator(call.arguments["data_collator"]))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, LogCallback):
            _extend_trainer_log(callback, trainer)
        elif isinstance(callback, PrinterCallback | ProgressCallback):
            _shorten_console(callback)
    if trainer.args.do_train:
        # First: it restores what the other one goes on from.
        trainer.add_callback(ResumedLogs(trainer))
        trainer.moe_routing_log = RoutingLog(trainer)
        trainer.add_callback(trainer.moe_routing_log)
        log_start_table(trainer)


def log(call: Call) -> None:
    """Stand in for `Trainer.log(logs, ...)`, which every process calls at every logging step."""
    logs = call.arguments["logs"]
    if "loss" in logs:
        logs.update(call.instance.moe_routing_log.log_step().means())
    call.host()


def save_state(call: Call) -> None:
    """Stand in for `save_state()`, which the host calls when a finished training's model is saved."""
    call.host()
    _let_go_of_tensors(call.instance)
    call.instance.moe_routing_log.write()


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
