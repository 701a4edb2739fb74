"""What is mended in the host's trainer, for `moe` runs alone: it is wrong with other methods, too.

Each is needed with the versions that it names; a version without the function is left alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers import __version__ as transformers_version
from transformers.trainer_utils import has_length

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.llamafactory.checkpoints import TRAINER_STATE
from neuronmoe_plugins.integrations.stand_ins import Call


def load_optimizer_and_scheduler(call: Call) -> Any:
    """Stand in for `_load_optimizer_and_scheduler(checkpoint)`, in every version of transformers so far.

    With several processes on CPUs, accelerate names the device `cpu:0`, and the host asks torch to load tensors to it.
    """
    if call.instance.args.device == torch.device("cpu", 0):
        torch.serialization.register_package(11, lambda _: None, lambda storage, to: storage if to == "cpu:0" else None)
    return call.host()


def init_training_state(call: Call) -> tuple[int, int]:
    """Stand in for `_init_training_state(...)`, which returns the passes over the data and the batches to be skipped.

    Of transformers 5.4 and later.

    It takes a stream for one long pass. `state.epoch` tells the passes, and its fraction the batches of the last one.
    """
    passes, batches = call.host()
    if batches and not has_length(call.instance.train_dataset):
        saved = TrainerState.load_from_json(str(Path(call.instance.args.resume_from_checkpoint) / TRAINER_STATE))
        passes = int(saved.epoch)
        batches = round((saved.epoch - passes) * saved.max_steps * call.instance.args.gradient_accumulation_steps)
    return passes, batches


def run_epoch(call: Call) -> Any:
    """Stand in for `_run_epoch(...)`, which takes a step too many where the checkpoint is of the last one.

    Of transformers 5.4 and later.
    """
    if call.instance.state.global_step >= call.instance.state.max_steps:
        call.instance.control.should_training_stop = True
        return None
    return call.host()


def get_batch_samples(call: Call) -> Any:
    """Stand in for `get_batch_samples(...)`, which returns the micro-batches of a step: none after the last one.

    Of transformers before 5.4, where the step too many cannot be kept off by `_run_epoch`.
    """
    if call.instance.state.global_step >= call.instance.state.max_steps:
        return [], None
    return call.host()


def check_resumed_stream(trainer: Any) -> None:
    """Refuse to go on after the first pass over a stream where the host would go on with other data.

    Transformers before 5.4 has no `_init_training_state` that could tell it the pass.

    Raises:
        UserError: naming the checkpoint.
    """
    is_told = hasattr(trainer, "_init_training_state") or has_length(trainer.train_dataset)
    if not is_told and trainer.state.epoch > 1:
        raise UserError(
            f"resume_from_checkpoint: {trainer.args.resume_from_checkpoint} is of pass {int(trainer.state.epoch) + 1} "
            f"over a stream, and transformers {transformers_version} goes on with other data there: install "
            "transformers 5.4 or later, or start again with overwrite_output_dir: true"
        )
