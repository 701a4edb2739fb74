"""How the command `lm_eval` ends on bad input: an adapter that does not fit, or data that are not there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt

from neuronmoe_plugins.errors import one_line
from neuronmoe_plugins.integrations.commands import end_in_one_line, explanations

# Words of a command line that asks for something of this package; other commands end as lm-eval lets them.
OURS = ("neuronmoe", "lm_eval_tasks")
TUNER = Path(__file__).parents[1] / "tuner"
# Errors of `datasets` and of the hub's client for what is not there or cannot be reached, by name: neither is imported.
DATA_ERRORS = ("ConnectionError", "DatasetNotFoundError", "FileNotFoundError", "DataFilesNotFoundError")


def extend_command(_module: ModuleType) -> None:
    """Post-import hook of `lm_eval._cli.harness`."""
    explanations["lm_eval"] = explain
    end_in_one_line()


def name_tasks(module: ModuleType) -> None:
    """Post-import hook of `lm_eval.api.task`: an error of loading a data set knows the task that needs it."""
    wrapt.wrap_function_wrapper(module, "ConfigurableTask.download", _download)


def explain(error: BaseException) -> str | None:
    """What to do about an adapter that the tuner refuses, or a data set of this package's command that is not there."""
    if type(error) is ValueError and _is_of_tuner(error):
        return one_line(error)
    task = getattr(error, "lm_eval_task", None)
    if task is None or type(error).__name__ not in DATA_ERRORS:
        return None
    if not any(word in argument for argument in sys.argv for word in OURS):
        return None
    return f"task {task}: cannot load its data set, download it once where the hub can be reached: {one_line(error)}"


def _is_of_tuner(error: BaseException) -> bool:
    """Whether the tuner raised it, which knows nothing of commands: its arguments are the adapter's configuration."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and Path(traceback.tb_frame.f_code.co_filename).is_relative_to(TUNER)


def _download(wrapped: Callable[..., None], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Stand in for `download(dataset_kwargs)`."""
    try:
        wrapped(*args, **kwargs)
    except Exception as error:
        error.lm_eval_task = instance.config.task  # type: ignore[attr-defined]
        raise
