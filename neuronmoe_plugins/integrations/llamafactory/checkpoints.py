"""Which checkpoint folders are whole: written to the end by every process, and not cut short since.

The hosts write a checkpoint straight into its final folder, each process its own files. A marker is there first,
and gets the sizes of the files when all processes have written theirs. A folder without a marker, of another tool, is
judged by the files that a resume reads.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate.utils import gather_object, parse_flag_from_env
from llamafactory.extras import logging
from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import flush, read_json, write_json
from neuronmoe_plugins.integrations.stand_ins import Call
from neuronmoe_plugins.models import ADAPTER_WEIGHTS

MARKER = "neuronmoe_checkpoint.json"
# What a plain run resumes from; the hosts' constants for them are in a module that takes seconds to import.
WEIGHTS, OPTIMIZER, SCHEDULER = ADAPTER_WEIGHTS, "optimizer.pt", "scheduler.pt"
TRAINER_STATE, TRAINING_ARGUMENTS = "trainer_state.json", "training_args.bin"
# DeepSpeed's file with the name of the folder that it has written.
LATEST = "latest"
# Written by `torch.save`, as zip archives.
ARCHIVES = (".pt", ".pth", ".bin")
logger = logging.get_logger("llamafactory.neuronmoe")
# Output folder of a run that is being parsed -> what the host shall find in it as the last checkpoint.
_chosen: dict[str, str | None] = {}


@dataclass(frozen=True)
class Launch:
    """How a run is launched, which decides what it resumes from."""

    num_processes: int = 1
    engine: Literal["deepspeed", "fsdp"] | None = None


def checkpoints(output_dir: Path) -> dict[int, Path]:
    """Step -> checkpoint folder, the last first; none where there is no such folder."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    folders = [path for path in output_dir.glob(f"{prefix}*") if path.is_dir()]
    steps = {int(number): path for path in folders if (number := path.name.removeprefix(prefix)).isdecimal()}
    return dict(sorted(steps.items(), reverse=True))


def begin(folder: Path) -> None:
    """Make the folder of a new checkpoint, which is not whole until :func:`mark_whole`; an old one's files go."""
    write_json(folder / MARKER, {})
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()


def mark_whole(folder: Path, more: dict[str, Any]) -> None:
    """Say that a checkpoint is whole, once all of it is on the disk.

    Args:
        folder: The checkpoint, to which every process has written its files.
        more: What else the marker shall hold; see :func:`read_marker`.
    """
    flush(folder)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(_files_of_state(folder))}
    write_json(folder / MARKER, {"files": sizes, **more})
    flush(folder)


def read_marker(folder: Path) -> dict[str, Any]:
    """What a whole checkpoint's marker holds; nothing where it is not marked as whole."""
    file = folder / MARKER
    return dict(read_json(file)) if file.exists() else {}


def defect(folder: Path, launch: Launch) -> str | None:
    """Why a checkpoint is not whole, such as `optimizer.pt is missing`; None if it is."""
    try:
        marker = read_marker(folder)
    except ValueError:
        return f"{MARKER} is cut short"
    if not marker:
        reason = _missing(folder, launch) or _cut_short(folder)
        return reason or ("it was not written to the end" if (folder / MARKER).exists() else None)
    for name, size in marker["files"].items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size != size:
            return f"{name} has {(folder / name).stat().st_size} bytes instead of {size}"
    return None


def unfit(folder: Path, launch: Launch) -> str | None:
    """What a whole checkpoint lacks that a run so launched resumes from; None if nothing."""
    return _first_without_match(folder, _engine_files(launch))


def rotate(output_dir: Path, limit: int | None, kept: set[Path], launch: Launch) -> None:
    """Delete the oldest whole checkpoints beyond `limit`; others neither count nor are touched.

    Args:
        output_dir: The run's folder.
        limit: How many whole checkpoints shall remain; all if None or 0.
        kept: Checkpoints that are never deleted: the one just written, and the best.
        launch: How the run is launched.
    """
    if not limit or limit < 0:
        return
    whole = [path for path in _oldest_first(output_dir) if defect(path, launch) is None]
    deletable = [path for path in whole if path not in kept]
    for path in deletable[: max(len(whole) - limit, 0)]:
        shutil.rmtree(path)


def _oldest_first(output_dir: Path) -> list[Path]:
    """The checkpoint folders by age; by step where all are of one second, as some file systems have it."""
    by_step = list(reversed(checkpoints(output_dir).values()))
    ages = {path: path.stat().st_mtime for path in by_step}
    is_told = ages and max(ages.values()) - min(ages.values()) >= 1
    return sorted(by_step, key=ages.__getitem__) if is_told else by_step


def _files_of_state(folder: Path) -> Iterator[Path]:
    """What a resume may read: not the tokenizer, the model card and the like, which callbacks write again."""
    for path in folder.rglob("*"):
        is_state = path.suffix in (*ARCHIVES, ".safetensors") or path.name in (TRAINER_STATE, LATEST)
        if path.is_file() and path.name != TRAINING_ARGUMENTS and (is_state or path.parent != folder):
            yield path


def _engine_files(launch: Launch) -> list[tuple[str, ...]]:
    """What every resume of this kind reads: for each entry, a match of one of its patterns."""
    if launch.engine == "deepspeed":
        return [(LATEST,)]
    if launch.engine == "fsdp":
        state = ("pytorch_model_fsdp", "optimizer")
        return [*((f"{name}.bin", f"{name}_0/.metadata") for name in state), (SCHEDULER,)]
    return [(name,) for name in (WEIGHTS, OPTIMIZER, SCHEDULER)]


def _random_states(launch: Launch) -> list[tuple[str, ...]]:
    """Each process's; the number of processes may have been another one."""
    if launch.num_processes == 1:
        return [("rng_state.pth", "rng_state_0.pth")]
    return [(f"rng_state_{index}.pth", "rng_state.pth") for index in range(launch.num_processes)]


def _missing(folder: Path, launch: Launch) -> str | None:
    """The first file that a resume reads and that is not there."""
    needed = [*_engine_files(launch), *_random_states(launch), (TRAINER_STATE,)]
    missing = _first_without_match(folder, needed)
    return _missing_shard(folder, launch) if missing is None and launch.engine == "deepspeed" else missing


def _missing_shard(folder: Path, launch: Launch) -> str | None:
    """The first of DeepSpeed's files that is not there, in the folder that its `latest` names."""
    tag = (folder / LATEST).read_text(encoding="utf-8").strip()
    if not tag:
        return f"{LATEST} is cut short"
    needed = [f"{tag}/*model_states.pt"]
    if any(folder.glob(f"{tag}/*optim_states.pt")):
        needed += [f"{tag}/*zero_pp_rank_{index}_mp_rank_*optim_states.pt" for index in range(launch.num_processes)]
    return _first_without_match(folder, [(pattern,) for pattern in needed])


def _first_without_match(folder: Path, needed: list[tuple[str, ...]]) -> str | None:
    missing = (names for names in needed if not any(any(folder.glob(name)) for name in names))
    return next((f"{' or '.join(names)} is missing" for names in missing), None)


def _cut_short(folder: Path) -> str | None:
    """The first file of the state that ends too early to be read."""
    for path in sorted(_files_of_state(folder)):
        name = path.relative_to(folder)
        try:
            if path.suffix == ".safetensors":
                safe_open(str(path), "pt")
            elif path.suffix in ARCHIVES:
                zipfile.ZipFile(path).close()
            elif path.name == TRAINER_STATE:
                read_json(path)
        except (SafetensorError, zipfile.BadZipFile, ValueError):
            return f"{name} is cut short"
    return None


def launch_of(training_args: Any) -> Launch:
    """How a run with these arguments is launched."""
    if training_args.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return Launch(training_args.world_size, "deepspeed")
    if training_args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return Launch(training_args.world_size, "fsdp")
    return Launch(training_args.world_size)


def choose_checkpoint(training_args: Any) -> Path | None:
    """Decide what a `moe` training run resumes from.

    Args:
        training_args: The host's arguments. A `resume_from_checkpoint` of true becomes the last checkpoint's path.

    Returns:
        The checkpoint, if there is one.

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
        return folder
    if asked:
        if asked is True:
            asked = next(iter(checkpoints(output_dir).values()), None)
            if asked is None:
                raise UserError(f"resume_from_checkpoint: there is no checkpoint in {output_dir}: remove the key")
        _check_asked(Path(asked), launch)
        training_args.resume_from_checkpoint = str(asked)
    return Path(asked) if asked else None


def forget_choice() -> None:
    """Forget what was decided for a run that was parsed before."""
    _chosen.clear()


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


def last_checkpoint(call: Call) -> Any:
    """Stand in for `get_last_checkpoint(folder)`, which goes by the folders' names."""
    folder = call.arguments["folder"]
    return _chosen.pop(folder) if folder in _chosen else call.host()
