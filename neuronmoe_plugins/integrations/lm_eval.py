"""This package's tasks in lm-eval, the adapters that it refuses, and how its command ends on bad input."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from fnmatch import filter as matching
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt
import yaml

from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.files import shared_folder
from neuronmoe_plugins.integrations.commands import end_in_one_line, explanations

# Words of a command line that asks for something of this package; other commands end as lm-eval lets them.
OURS = ("neuronmoe", "lm_eval_tasks")
TUNER = Path(__file__).parents[1] / "tuner"
# Errors of `datasets` and of the hub's client for what is not there or cannot be reached, by name: neither is imported.
DATA_ERRORS = ("ConnectionError", "DatasetNotFoundError", "FileNotFoundError", "DataFilesNotFoundError")
# The names that were put into lm-eval's index.
added: set[str] = set()

logger = logging.getLogger(__name__)


def extend_command(_module: ModuleType) -> None:
    """Post-import hook of `lm_eval._cli.harness`."""
    explanations["lm_eval"] = explain
    end_in_one_line()


def check_bases(module: ModuleType) -> None:
    """Post-import hook of `lm_eval.models.huggingface`: an adapter of another base model is not evaluated."""
    wrapt.wrap_function_wrapper(module, "HFLM._create_model", _create_model)


def name_tasks(module: ModuleType) -> None:
    """Post-import hook of `lm_eval.api.task`: an error of loading a data set knows the task that needs it."""
    wrapt.wrap_function_wrapper(module, "ConfigurableTask.download", _download)


def offer_tasks(module: ModuleType) -> None:
    """Post-import hook of `lm_eval.tasks`: names that lm-eval does not know may be those of this package's tasks."""
    for name in ("match_tasks", "load", "load_task_or_group"):  # `load` since 0.4.12
        if hasattr(module.TaskManager, name):
            wrapt.wrap_function_wrapper(module, f"TaskManager.{name}", _find_tasks)
    if hasattr(module.TaskManager, "_load_individual_task_or_group"):  # until 0.4.12
        wrapt.wrap_function_wrapper(module, "TaskManager._load_individual_task_or_group", _load_member)


def _load_member(wrapped: Callable[..., Any], manager: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand in for `_load_individual_task_or_group(name_or_config, parent_name, update_config)` of older releases.

    The paper's groups have groups of tasks with a number of examples of their own.
    """
    from neuronmoe_plugins.host_versions import named_by_task

    if args:
        return wrapped(named_by_task(args[0], manager._name_is_group), *args[1:], **kwargs)
    given = named_by_task(kwargs.get("name_or_config"), manager._name_is_group)
    return wrapped(**{**kwargs, "name_or_config": given})


def _find_tasks(wrapped: Callable[..., Any], manager: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand in for `match_tasks(task_list)`, `load(task_list)` and `load_task_or_group(task_list)`.

    Only what is asked for and unknown brings the tasks in: lists, patterns and folders of others stay what they are.
    """
    asked = args[0] if args else kwargs.get("task_list")
    names = [name for name in ([asked] if isinstance(asked, str) else asked or ()) if isinstance(name, str)]
    unknown = [name for name in names if not matching(getattr(manager, "all_tasks", names), name)]
    if unknown:
        try:
            _add_tasks(manager, unknown)
        except Exception as error:  # lm-eval then says that it does not know the name
            folder = shared_folder("lm_eval_tasks")
            logger.warning(
                "neuronmoe-plugins cannot add its tasks (%s): use --include_path %s", one_line(error), folder
            )
    _require_members(manager, names)
    return wrapped(*args, **kwargs)


def _require_members(manager: Any, asked: Sequence[str]) -> None:
    """Raise `UserError` for a group of lm-eval's own benchmarks of which this release does not have one yet.

    Some releases raise a KeyError there, others make a task of the name that has no data.
    """
    for file in sorted(shared_folder("lm_eval_tasks").glob("neuronmoe/*_native.yaml")):
        # Which it is only where it was asked for, or its folder was.
        if any(matching([file.stem], name) for name in asked) and file.stem in manager.task_index:
            members = yaml.safe_load(file.read_text(encoding="utf-8"))["task"]
            known = [member for member in members if member in manager.task_index]
            if missing := [member for member in members if member not in known]:
                others = f", or name the others: --tasks {','.join(known)}" if known else ""
                wrong = f"lm-eval {version('lm-eval')} has no {', '.join(missing)}, which {file.stem} asks for"
                raise UserError(f"{wrong}; update it{others}")


def _add_tasks(manager: Any, unknown: Sequence[str]) -> None:
    """Put this package's tasks behind those that lm-eval and the user's folders have, if a name is theirs."""
    own = type(manager)(include_path=str(shared_folder("lm_eval_tasks")), include_defaults=False)
    if not any(matching(own.all_tasks, name) for name in unknown):
        return
    new = {name: entry for name, entry in own.task_index.items() if name not in manager.task_index}
    manager.task_index.update(new)
    added.update(new)
    for kind in ("_all_tasks", "_all_groups", "_all_subtasks", "_all_tags"):
        setattr(manager, kind, sorted({*getattr(manager, kind), *new.keys() & set(getattr(own, kind))}))


def explain(error: BaseException) -> str | None:
    """What to do about an adapter that the tuner refuses, or a data set of this package's command that is not there."""
    if type(error) is ValueError and _is_of_tuner(error):
        return one_line(error)
    task = getattr(error, "lm_eval_task", None)
    if task is None or type(error).__name__ not in DATA_ERRORS:
        return None
    if task not in added and not any(word in argument for argument in sys.argv for word in OURS):
        return None
    return f"task {task}: cannot load its data set, download it once where the hub can be reached: {one_line(error)}"


def _is_of_tuner(error: BaseException) -> bool:
    """Whether the tuner raised it, which knows nothing of commands: its arguments are the adapter's configuration."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and Path(traceback.tb_frame.f_code.co_filename).is_relative_to(TUNER)


def _create_model(wrapped: Callable[..., None], _model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Stand in for `_create_model(pretrained, ..., peft, ...)`, which loads the adapter, too."""
    from neuronmoe_plugins.tuner.fingerprint import refused_on_other_base

    with refused_on_other_base():
        wrapped(*args, **kwargs)


def _download(wrapped: Callable[..., None], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Stand in for `download(dataset_kwargs)`."""
    try:
        wrapped(*args, **kwargs)
    except Exception as error:
        error.lm_eval_task = instance.config.task  # type: ignore[attr-defined]
        raise
