"""LLaMA-Factory's trainer in a `moe` run: its collator, its logs, and checkpoints that are whole or not there.

A resumed run logs and computes what it would have without the interruption. For that the marker of a checkpoint also
holds what has been summed up since the last log, which the host starts anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from llamafactory.train.callbacks import TRAINER_LOG, LogCallback
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from neuronmoe_plugins.files import new_files, write_text
from neuronmoe_plugins.integrations.llamafactory.checkpoints import (
    WEIGHTS,
    begin,
    launch_of,
    mark_whole,
    read_marker,
    rotate,
)
from neuronmoe_plugins.integrations.llamafactory.end_tokens import warn_of_end_tokens
from neuronmoe_plugins.integrations.llamafactory.repairs import check_resumed_stream
from neuronmoe_plugins.integrations.llamafactory.run_log import LOSSES, RoutingLog, log_start_table
from neuronmoe_plugins.integrations.llamafactory.token_tags import TokenTagCollator
from neuronmoe_plugins.integrations.stand_ins import Call

# Values in every log but the console's, where one for each expert would be too many to read.
EXPERT_SHARES = "expert_share/"
THREADS_SECONDS = 0.5


def init_trainer(call: Call) -> None:
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
        arguments = trainer.finetuning_args
        if arguments.stage == "sft":
            warn_of_end_tokens(trainer.model, trainer.processing_class, arguments.run.data_args.template)


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


class ResumedLogs(TrainerCallback):
    """Lets the logs of a run go on where its checkpoint was written.

    Args:
        trainer: The trainer that the callback is added to.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called when the host has loaded the checkpoint and set its sums to 0."""
        if args.should_save:
            keep_until(Path(args.output_dir) / TRAINER_LOG, state.global_step)
        if state.global_step:
            check_resumed_stream(self._trainer)
            _add_sums(self._trainer, read_marker(Path(args.resume_from_checkpoint)).get("since_last_log"))


def save_checkpoint(call: Call) -> None:
    """Stand in for `_save_checkpoint(model, trial)`, which every process calls."""
    trainer = call.instance
    output_dir = Path(trainer._get_output_dir(trial=call.arguments["trial"]))
    folder = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    if folder == Path(trainer.args.resume_from_checkpoint or ""):
        return  # it is of the end of a pass over the data, and there has been no step since
    if trainer.args.should_save:
        # A run may have got here before; none of its files must be taken for one of this run's.
        begin(folder)
    trainer.accelerator.wait_for_everyone()
    with _without_rotation(trainer.args):
        call.host()
    sums = _sums_since_last_log(trainer)
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        _wait_for_log(trainer)
        mark_whole(folder, {"global_step": trainer.state.global_step, "since_last_log": sums})
        best = trainer.state.best_model_checkpoint
        kept = {folder, Path(best)} if best else {folder}
        rotate(output_dir, trainer.args.save_total_limit, kept, launch_of(trainer.args))


def save(call: Call) -> None:
    """Stand in for `_save(output_dir, state_dict)`, which one process calls.

    The final files appear whole, the weights last; those of a checkpoint are vouched for by its marker.
    """
    final = Path(call.instance.args.output_dir)
    output_dir = Path(call.arguments.get("output_dir") or final)
    if output_dir != final:
        call.host()
        return
    with new_files(output_dir, last=WEIGHTS) as partial:
        call.host(output_dir=str(partial))


@contextmanager
def _without_rotation(training_args: Any) -> Iterator[None]:
    """Keep the host from deleting a checkpoint before the new one is whole; the new one's training_args.bin says so."""
    limit, training_args.save_total_limit = training_args.save_total_limit, None
    try:
        yield
    finally:
        training_args.save_total_limit = limit


def _wait_for_log(trainer: Any) -> None:
    """The host writes trainer_log.jsonl from a thread; the lines up to a whole checkpoint are there."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, LogCallback) and callback.thread_pool is not None:
            callback.thread_pool.submit(int).result()


def _sums_since_last_log(trainer: Any) -> dict[str, Any]:
    """What the next log will be the mean of, so far and over all processes."""
    metrics = trainer.model.base_model.pop_metric_sums()
    _add_metrics(trainer, metrics)
    loss = trainer._tr_loss.item() if hasattr(trainer, "_tr_loss") else 0.0
    local = gather_object([{"loss": loss, "metrics": metrics}])
    summed: dict[str, list[float]] = {}
    for name in dict.fromkeys(name for process in local for name in process["metrics"]):
        values = [process["metrics"][name] for process in local if name in process["metrics"]]
        summed[name] = [sum(column) for column in zip(*values, strict=True)]
    return {
        "from_step": trainer._globalstep_last_logged,
        "losses": [process["loss"] for process in local],
        "logged_loss": trainer._total_loss_scalar,
        "metrics": summed,
    }


def _add_sums(trainer: Any, sums: dict[str, Any] | None) -> None:
    """Go on from :func:`_sums_since_last_log`; a checkpoint of another tool has none."""
    if sums is None or not hasattr(trainer, "_tr_loss"):
        return
    losses, index = sums["losses"], trainer.args.process_index
    # The log has the mean over the processes, of which there may have been more or fewer.
    same = len(losses) == trainer.args.world_size
    trainer._tr_loss += losses[index] if same else sum(losses) / len(losses)
    trainer._total_loss_scalar = sums["logged_loss"]
    trainer._globalstep_last_logged = sums["from_step"]
    if trainer.is_world_process_zero():
        _add_metrics(trainer, sums["metrics"])


def _add_metrics(trainer: Any, sums: dict[str, Any]) -> None:
    """Add (sum of values, number of values) of each name to the mixture's metrics."""
    metrics = trainer.model.base_model.objective.metrics
    for name, (total, number) in sums.items():
        values = (torch.tensor(value, dtype=torch.float64, device=trainer.args.device) for value in (total, number))
        metrics.add(name, *values)


def keep_until(log: Path, step: int) -> None:
    """Drop what the run will write again: the lines after a step, the summary at the end, and a line cut short.

    Args:
        log: A trainer_log.jsonl, which need not exist; replaced in one go.
        step: Step of the checkpoint that the run goes on from; 0 if it starts from the beginning.
    """
    if not log.exists():
        return
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if _stays(line, step)]
    if kept != lines:
        write_text(log, "".join(f"{line}\n" for line in kept))


def _stays(line: str, step: int) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    at = entry["current_steps"]
    return at < step or (at == step > 0 and ("loss" in entry or "eval_loss" in entry))
