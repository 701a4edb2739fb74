"""Lets a process of a test kill itself, as a machine that fails would: no clean-up, no exit handlers."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import wrapt

# In the environment: `optimizer.pt:2` when the second file of that name is half written, `step:7` within that step.
WHEN = "KILL_WHEN"
_seen = Counter()


def register():
    """Hook whatever writes files or trains, in this process and those that are forked from it."""
    wrapt.register_post_import_hook(lambda torch: wrapt.wrap_function_wrapper(torch, "save", _save), "torch")
    wrapt.register_post_import_hook(
        lambda peft: wrapt.wrap_function_wrapper(peft, "safe_save_file", _save), "peft.peft_model"
    )
    wrapt.register_post_import_hook(
        lambda trainer: wrapt.wrap_function_wrapper(trainer, "Trainer.training_step", _step), "transformers.trainer"
    )


def _save(wrapped, instance, args, kwargs):
    """Stand in for `torch.save(value, path)` and `save_file(tensors, path)`."""
    result = wrapped(*args, **kwargs)
    path = Path(args[1])
    if _is_time(path.name):
        os.truncate(path, path.stat().st_size // 2)
        time.sleep(1)  # the other processes go on
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def _step(wrapped, instance, args, kwargs):
    result = wrapped(*args, **kwargs)
    if os.environ.get(WHEN) == f"step:{instance.state.global_step + 1}":
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def _is_time(name):
    _seen[name] += 1
    return os.environ.get(WHEN) == f"{name}:{_seen[name]}"
