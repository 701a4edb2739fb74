"""Which checkpoint folders count as whole, with and without the marker."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from neuronmoe_plugins.files import new_files
from neuronmoe_plugins.integrations.llamafactory.checkpoints import (
    MARKER,
    Launch,
    begin,
    checkpoints,
    defect,
    mark_whole,
    rotate,
    unfit,
)
from neuronmoe_plugins.integrations.llamafactory.trainer import keep_until

PLAIN = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
SHARDS = [f"global_step4/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]
TWO = ("scheduler.pt", "rng_state_0.pth", "rng_state_1.pth", "trainer_state.json")
LAYOUTS = {
    Launch(): PLAIN,
    Launch(2): (*PLAIN[:2], *TWO),
    Launch(2, "deepspeed"): ("latest", "global_step4/mp_rank_00_model_states.pt", *SHARDS, *TWO),
    Launch(2, "fsdp"): ("pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata", *TWO),
}
METADATA = LAYOUTS[Launch(2, "fsdp")][:2]
# Where the folder's layout leaves several names open.
SHARD = r"global_step4/\*zero_pp_rank_{}_mp_rank_\*optim_states\.pt"
MISSING = {shard: SHARD.format(rank) for rank, shard in enumerate(SHARDS)} | {
    "global_step4/mp_rank_00_model_states.pt": r"global_step4/\*model_states\.pt"
}
FILES = [(launch, name) for launch, names in LAYOUTS.items() for name in names]


def write_checkpoint(folder: Path, launch: Launch) -> Path:
    """The files of a resume, and some that it does not read."""
    for name in (*LAYOUTS[launch], "training_args.bin", "README.md"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({"weight": torch.ones(9)}, path)
        elif path.suffix in (".pt", ".pth", ".bin"):
            torch.save({"state": torch.ones(9)}, path)
        else:
            path.write_text({"latest": "global_step4"}.get(name, json.dumps({"global_step": 4})))
    return folder


@pytest.mark.parametrize("launch", LAYOUTS, ids=str)
def test_a_whole_checkpoint_is_one_with_and_without_marker(tmp_path: Path, launch: Launch) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-4", launch)
    assert defect(folder, launch) is None
    mark_whole(folder, {})
    assert defect(folder, launch) is None
    assert unfit(folder, launch) is None
    # What callbacks write into a checkpoint later.
    (folder / "README.md").write_text("More.")
    (folder / "training_args.bin").unlink()
    assert defect(folder, launch) is None


@pytest.mark.parametrize(("launch", "name"), FILES, ids=str)
def test_a_marked_checkpoint_has_the_files_that_were_marked(tmp_path: Path, launch: Launch, name: str) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-4", launch)
    mark_whole(folder, {})
    size = (folder / name).stat().st_size
    os.truncate(folder / name, size - 1)
    assert defect(folder, launch) == f"{name} has {size - 1} bytes instead of {size}"
    (folder / name).unlink()
    assert defect(folder, launch) == f"{name} is missing"


@pytest.mark.parametrize(("launch", "name"), FILES, ids=str)
def test_without_a_marker_every_file_of_a_resume_is_needed(tmp_path: Path, launch: Launch, name: str) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-4", launch)
    os.truncate(folder / name, (folder / name).stat().st_size - 1)
    # DeepSpeed's `latest` is then the name of another folder; FSDP's metadata cannot be judged by their length.
    cut_short = {"latest": "global_step/*model_states.pt is missing", **dict.fromkeys(METADATA)}
    assert defect(folder, launch) == cut_short.get(name, f"{name} is cut short")
    (folder / name).unlink()
    if (launch.engine, name) == ("deepspeed", "scheduler.pt"):  # DeepSpeed may have one of its own
        assert defect(folder, launch) is None
    else:
        assert re.fullmatch(
            f"(.* or )?{MISSING.get(name, re.escape(name))}( or .*)? is missing", defect(folder, launch) or ""
        )


def test_a_marker_that_is_cut_short(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-4", Launch())
    mark_whole(folder, {})
    os.truncate(folder / MARKER, 20)
    assert defect(folder, Launch()) == f"{MARKER} is cut short"


def test_a_checkpoint_that_was_begun_has_to_be_marked(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    (folder / "optimizer.pt").touch()
    begin(folder)
    assert defect(folder, Launch()) == "adapter_model.safetensors is missing"
    write_checkpoint(folder, Launch())
    assert defect(folder, Launch()) == "it was not written to the end"
    mark_whole(folder, {})
    assert defect(folder, Launch()) is None


def test_another_number_of_processes(tmp_path: Path) -> None:
    one, two = (write_checkpoint(tmp_path / str(n) / "checkpoint-4", Launch(n)) for n in (1, 2))
    assert defect(one, Launch(2)) is None
    assert defect(two, Launch(1)) is None
    assert defect(two, Launch(3)) == "rng_state_2.pth or rng_state.pth is missing"
    mark_whole(two, {})
    assert defect(two, Launch(3)) is None


def test_what_a_run_launched_otherwise_lacks(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-4", Launch(2, "deepspeed"))
    mark_whole(folder, {})
    assert unfit(folder, Launch(2)) == "adapter_model.safetensors is missing"
    assert unfit(folder, Launch(2, "fsdp")) == "pytorch_model_fsdp.bin or pytorch_model_fsdp_0/.metadata is missing"


def test_checkpoints_are_found_by_number(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-best", "checkpoint-8.old", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-11").touch()
    assert list(checkpoints(tmp_path).items()) == [(10, tmp_path / "checkpoint-10"), (9, tmp_path / "checkpoint-9")]
    assert checkpoints(tmp_path / "none") == {}


def test_rotation_counts_and_deletes_whole_checkpoints_alone(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 8):
        mark_whole(write_checkpoint(tmp_path / f"checkpoint-{step}", Launch()), {})
    (tmp_path / "checkpoint-8" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-1" / "optimizer.pt").unlink()
    rotate(tmp_path, 0, {tmp_path / "checkpoint-4"}, Launch())
    rotate(tmp_path, 3, {tmp_path / "checkpoint-4"}, Launch())
    assert list(checkpoints(tmp_path)) == [8, 4, 3, 2, 1]
    rotate(tmp_path, 2, {tmp_path / "checkpoint-4", tmp_path / "checkpoint-2"}, Launch())
    assert list(checkpoints(tmp_path)) == [8, 4, 2, 1]
    rotate(tmp_path, 1, {tmp_path / "checkpoint-4", tmp_path / "checkpoint-2"}, Launch())
    assert list(checkpoints(tmp_path)) == [8, 4, 2, 1]
    rotate(tmp_path, 1, {tmp_path / "checkpoint-4"}, Launch())
    assert list(checkpoints(tmp_path)) == [8, 4, 1]


def test_new_files_take_the_old_ones_place_together(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("old")
    (tmp_path / "checkpoint-4").mkdir()
    with pytest.raises(RuntimeError), new_files(tmp_path, last="weights") as partial:
        (partial / "weights").write_text("half")
        raise RuntimeError
    assert (tmp_path / "weights").read_text() == "old"
    with new_files(tmp_path, last="weights") as partial:
        assert not list(partial.iterdir())
        (partial / "weights").write_text("new")
        (partial / "config").write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {"weights", "config", "checkpoint-4"}
    assert (tmp_path / "weights").read_text() == "new"


def test_a_log_keeps_what_comes_before_the_checkpoint(tmp_path: Path) -> None:
    log = tmp_path / "trainer_log.jsonl"
    keep_until(log, 4)
    assert not log.exists()
    values = ((2, {"loss": 3.0}), (4, {"loss": 2.0}), (4, {"eval_loss": 3.0}), (4, {}), (6, {"loss": 1.0}))
    lines = [json.dumps({"current_steps": step, **value}) for step, value in values]
    log.write_text("\n".join([*lines, '{"current_st']))
    keep_until(log, 4)
    assert log.read_text().splitlines() == lines[:3]
    changed = log.stat().st_mtime_ns
    keep_until(log, 4)
    assert log.stat().st_mtime_ns == changed
    keep_until(log, 0)
    assert log.read_text() == ""
    assert [path.name for path in tmp_path.iterdir()] == [log.name]
