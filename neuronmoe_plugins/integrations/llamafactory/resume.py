"""Which checkpoint a training run goes on from: the last whole one, where the host takes the last by name.

The host chooses only after it has checked all arguments. What it then gets is decided when they are parsed, where every
process takes part: they may see different disks, and have to agree.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt
from accelerate.utils import gather_object, parse_flag_from_env
from llamafactory.extras import logging

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.llamafactory.whole_checkpoints import Launch, checkpoints, defect, unfit

logger = logging.get_logger("llamafactory.neuronmoe")

# Output folder of a run that is being parsed -> what the host shall find in it as the last checkpoint.
_chosen: dict[str, str | None] = {}


def extend_choice(module: ModuleType) -> None:
    """Let `llamafactory.hparams.parser` choose whole checkpoints; after the hooks that check a run's arguments."""
    wrapt.wrap_function_wrapper(module, "_parse_train_args", _parse_train_args)
    wrapt.wrap_function_wrapper(module, "get_last_checkpoint", _get_last_checkpoint)


def launch_of(training_args: Any) -> Launch:
    """How a run with these arguments is launched."""
    if training_args.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return Launch(training_args.world_size, "deepspeed")
    if training_args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return Launch(training_args.world_size, "fsdp")
    return Launch(training_args.world_size)


def choose_checkpoint(training_args: Any) -> None:
    """Decide what a `moe` training run resumes from.

    Args:
        training_args: The host's arguments. A `resume_from_checkpoint` of true becomes the last checkpoint's path.

    Raises:
        UserError: if `resume_from_checkpoint` names a checkpoint that is not whole, or none, or the checkpoint was
            written by a run that was launched otherwise.
    """
    launch, output_dir = launch_of(training_args), Path(training_args.output_dir)
    asked = training_args.resume_from_checkpoint
    if asked is None and not getattr(training_args, "overwrite_output_dir", False):
        folder = _last_whole(output_dir, launch)
        _chosen[training_args.output_dir] = None if folder is None else str(folder)
        if folder is not None:
            _check_fits(folder, launch)
    elif asked:
        if asked is True:
            asked = next(iter(checkpoints(output_dir).values()), None)
            if asked is None:
                raise UserError(f"resume_from_checkpoint: there is no checkpoint in {output_dir}: remove the key")
        _check_asked(Path(asked), launch)
        training_args.resume_from_checkpoint = str(asked)


def _parse_train_args(
    wrapped: Callable[..., Any], instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Stand in for `_parse_train_args(args)`."""
    _chosen.clear()
    parsed = wrapped(*args, **kwargs)
    _, _, training_args, finetuning_args, _ = parsed
    if finetuning_args.finetuning_type == "moe" and training_args.do_train:
        choose_checkpoint(training_args)
    return parsed


def _last_whole(output_dir: Path, launch: Launch) -> Path | None:
    """The last checkpoint that every process finds whole; says which ones are skipped for it."""
    found = checkpoints(output_dir)
    defects = {step: defect(folder, launch) for step, folder in found.items()}
    whole = {step for step, reason in defects.items() if reason is None}
    if launch.num_processes > 1:
        whole = set.intersection(*gather_object([whole]))
    taken = max(whole, default=None)
    skipped = [
        f"{found[step].name} is skipped: {reason or 'it is not whole for another process'}"
        for step, reason in defects.items()
        if taken is None or step > taken
    ]
    if skipped:
        then = (
            "no other is whole, training starts from the beginning"
            if taken is None
            else f"{found[taken].name} is taken"
        )
        logger.warning_rank0(f"{output_dir}: {'; '.join(skipped)}; {then}")
    return None if taken is None else found[taken]


def _check_asked(folder: Path, launch: Launch) -> None:
    if not folder.is_dir():
        raise UserError(f"resume_from_checkpoint: there is no folder {folder}")
    reason = defect(folder, launch)
    if reason:
        raise UserError(
            f"resume_from_checkpoint: {folder} is not whole: {reason}; name another one, or remove the key to go on "
            "from the last whole checkpoint in output_dir"
        )
    _check_fits(folder, launch)


def _check_fits(folder: Path, launch: Launch) -> None:
    """Starting again would overwrite what was trained."""
    reason = unfit(folder, launch)
    if reason:
        raise UserError(
            f"{folder} is of a run with another kind of launch (DeepSpeed, FSDP or neither), or with save_only_model: "
            f"{reason}; launch this run as that one, or start a new one with another output_dir or "
            "overwrite_output_dir: true"
        )


def _get_last_checkpoint(
    wrapped: Callable[..., Any], instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Stand in for `get_last_checkpoint(folder)`, which goes by the folders' names."""
    folder = args[0] if args else kwargs["folder"]
    return _chosen.pop(folder) if folder in _chosen else wrapped(*args, **kwargs)
