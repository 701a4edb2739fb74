"""Which checkpoint a run goes on from, and that it goes on as if nothing had happened; in this process."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from llamafactory.hparams import parser
from llamafactory.train.callbacks import LogCallback
from resumed_runs import SETTINGS, assert_same_run, written_log
from training_runs import stage1_arguments, train

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.llamafactory import checkpoints, repairs, trainer
from neuronmoe_plugins.integrations.llamafactory.checkpoints import MARKER

STREAM = {"streaming": True, "dataloader_num_workers": 1, "mix_strategy": "interleave_over", "max_steps": 14}
EXTENSION = {
    "ada_moe_num_experts_list": "4,1,2,2",
    "old_moe_num_experts_list": "3,1,1,2",
    "sequential_add_loss_coef": 0.1,
    "sequential_add_mask": True,
}
GROUPS = {
    "ada_moe_num_experts_list": None,
    "old_moe_num_experts_list": "3,1,1,2",
    "group_nums": "2,0,0,2",
    "train_only_router": True,
    "classify_loss_coef": 0.2,
    "sequential_add_mask": True,
}
# Settings -> the step of the checkpoint that is resumed.
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "the third of four epochs, in accumulated batches": (
        {"max_samples": 24, "gradient_accumulation_steps": 3, "per_device_train_batch_size": 1},
        6,
    ),
    "the second pass of a stream": (STREAM | {"per_device_train_batch_size": 32}, 12),
    "the end of a stream's first pass": (STREAM | {"per_device_train_batch_size": 32, "save_strategy": "epoch"}, 7),
    "an extension": (EXTENSION, 3),
    "routers and new classifiers": (GROUPS, 3),
    "the last step": ({}, 12),
    "conversations, with experts of low rank": (
        {"stage": "sft", "template": "empty", "dataset": "en_chat,el_chat", "moe_expert_rank": 4}
        | {"moe_targets": "both"},
        6,
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, data_dir: Path) -> tuple[Path, dict[str, Any]]:
    """Folder of an uninterrupted stage 1 with all its checkpoints, and its arguments."""
    output = tmp_path_factory.mktemp("resume") / "run"
    arguments = stage1_arguments(tiny_model_dir, data_dir, output) | SETTINGS | {"save_total_limit": None}
    train(arguments, output)
    return output, arguments


def interrupted(output: Path, folder: Path, *steps: int) -> Path:
    """Copy what a run has left behind that was killed in the middle of a line of its log; with some checkpoints."""
    folder.mkdir()
    (folder / "trainer_log.jsonl").write_text((output / "trainer_log.jsonl").read_text()[:-20])
    for step in steps:
        shutil.copytree(output / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_is_the_uninterrupted_one(run: tuple[Path, dict[str, Any]], tmp_path: Path, name: str) -> None:
    settings, step = VARIANTS[name]
    adapter, arguments = run
    if settings in (EXTENSION, GROUPS):
        settings = settings | {"adapter_name_or_path": str(adapter)}
    arguments = {key: value for key, value in (arguments | settings).items() if value is not None}
    train(arguments, tmp_path / "whole")
    resumed = interrupted(tmp_path / "whole", tmp_path / "resumed", step)
    train(arguments, resumed)
    assert_same_run(resumed, tmp_path / "whole")
    markers = (folder / f"checkpoint-{step}" / MARKER for folder in (tmp_path / "whole", resumed))
    assert len({marker.stat().st_mtime_ns for marker in markers}) == 1


def test_without_a_whole_checkpoint_a_run_starts_again(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, arguments = run
    lines: list[str] = []
    monkeypatch.setattr(checkpoints.logger, "warning_rank0", lines.append)
    again = interrupted(output, tmp_path / "again", 3, 6)
    (again / "checkpoint-3" / "optimizer.pt").unlink()
    (again / "checkpoint-6" / "scheduler.pt").write_bytes(b"")
    size = (output / "checkpoint-6" / "scheduler.pt").stat().st_size
    train(arguments | {"max_steps": 2, "save_strategy": "no"}, again)
    assert lines == [
        f"{again}: checkpoint-6 is skipped: scheduler.pt has 0 bytes instead of {size}; checkpoint-3 is skipped: "
        "optimizer.pt is missing; no other is whole, training starts from the beginning"
    ]
    assert [entry["current_steps"] for entry in written_log(again)] == [2, 2]
    # Nothing reached their steps.
    assert {path.name for path in again.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}


def test_weights_without_a_whole_checkpoint_are_not_overwritten(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    output, arguments = run
    finished = interrupted(output, tmp_path / "finished", 3)
    (finished / "checkpoint-3" / "trainer_state.json").unlink()
    shutil.copy(output / "adapter_model.safetensors", finished)
    with pytest.raises(ValueError, match="Output directory already exists"):
        train(arguments, finished)


def test_an_explicit_checkpoint_must_be_whole(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    output, arguments = run
    folder = interrupted(output, tmp_path / "broken", 3, 6)
    (folder / "checkpoint-6" / "optimizer.pt").unlink()
    for asked in (True, str(folder / "checkpoint-6")):
        with pytest.raises(UserError, match=r"checkpoint-6 is not whole: optimizer\.pt is missing"):
            train(arguments, folder, resume_from_checkpoint=asked)
    with pytest.raises(UserError, match=r"no folder .*checkpoint-7"):
        train(arguments, folder, resume_from_checkpoint=str(folder / "checkpoint-7"))
    with pytest.raises(UserError, match="there is no checkpoint in"):
        train(arguments, tmp_path / "empty", resume_from_checkpoint=True)
    train(arguments, folder, resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert_same_run(folder, output)


def test_a_checkpoint_without_what_this_run_resumes_from(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    arguments = run[1]
    train(arguments, tmp_path / "weights", save_only_model=True, max_steps=3)
    for asked in (None, True):
        with pytest.raises(UserError, match=r"checkpoint-3 .*save_only_model: optimizer\.pt is missing"):
            train(arguments, tmp_path / "weights", resume_from_checkpoint=asked)


def test_a_checkpoint_of_another_base_model(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = interrupted(run[0], tmp_path / "run", 3)
    base = Path(shutil.copytree(run[1]["model_name_or_path"], tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"].mul_(1.02)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=f"checkpoint-3 is of a run on another base model, but {base} has other weights"
    ):
        train(run[1], folder, model_name_or_path=str(base))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"topk": 1}, "topk 2 instead of 1"),
        ({"train_only_router": True, "adapter_name_or_path": ...}, "train_only_router False instead of True"),
        ({"ada_moe_num_experts_list": "3,1,1,3"}, r"num_experts \[3, 1, 1, 2\] instead of \[3, 1, 1, 3\]"),
        ({"moe_expert_rank": 4}, "expert_rank None instead of 4, lora_alpha None instead of 16"),
    ],
)
def test_a_checkpoint_of_other_experts(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    """Most would be loaded without a word, or fail when the model is there."""
    folder = interrupted(run[0], tmp_path / "run", 3)
    if "adapter_name_or_path" in changed:
        changed = changed | {"adapter_name_or_path": str(run[0])}
    file = folder / "checkpoint-3" / "adapter_config.json"
    with pytest.raises(UserError, match=f"^{file} has {message}: give the same again, or start a new run with another"):
        train(run[1], folder, **changed)


def test_processes_agree_on_a_checkpoint(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupted(run[0], tmp_path / "shared", 3, 6)
    lines: list[str] = []
    monkeypatch.setattr(checkpoints.logger, "warning_rank0", lines.append)
    monkeypatch.setattr(checkpoints, "gather_object", lambda whole: [*whole, {3, 9}])
    training_args = SimpleNamespace(
        output_dir=str(folder), world_size=2, deepspeed=None, fsdp=None, resume_from_checkpoint=None
    )
    checkpoints.choose_checkpoint(training_args)
    assert parser.get_last_checkpoint(str(folder)) == str(folder / "checkpoint-3")
    assert lines == [f"{folder}: checkpoint-6 is skipped: it is not whole for another process; checkpoint-3 is taken"]


def test_the_log_is_written_before_its_checkpoint_is_whole(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, mark = LogCallback._write_log, trainer.mark_whole
    written: list[int] = []

    def write_late(self: LogCallback, output_dir: str, logs: dict[str, Any]) -> None:
        time.sleep(0.1)
        write(self, output_dir, logs)

    def mark_with_log(folder: Path, more: dict[str, Any]) -> None:
        written.extend(entry["current_steps"] for entry in written_log(folder.parent)[-1:])
        mark(folder, more)

    monkeypatch.setattr(LogCallback, "_write_log", write_late)
    monkeypatch.setattr(trainer, "mark_whole", mark_with_log)
    train(run[1], tmp_path / "slow", max_steps=4, save_steps=2)
    assert written == [2, 4]


def test_lora_runs_resume_as_the_host_has_it(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    arguments = {key: value for key, value in run[1].items() if key in stage1_arguments(*[tmp_path] * 3)}
    lora = arguments | {"finetuning_type": "lora", "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    del lora["ada_moe_num_experts_list"]
    train(lora, tmp_path / "lora", max_steps=4)
    assert not list(tmp_path.glob("lora/checkpoint-*/neuronmoe*"))
    (tmp_path / "lora" / "checkpoint-4" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="Can't find a valid checkpoint"):
        train(lora, tmp_path / "lora", max_steps=6)


def test_with_an_older_host_nothing_goes_on_otherwise() -> None:
    """Before transformers 5.4 a step too many is kept off elsewhere, and later passes over a stream cannot be found."""
    state = SimpleNamespace(global_step=12, max_steps=12, epoch=1.5)
    arguments = SimpleNamespace(resume_from_checkpoint="run/checkpoint-12")
    host = SimpleNamespace(state=state, args=arguments, train_dataset=iter([]))
    call: Any = SimpleNamespace(instance=host, host=lambda: (["micro-batch"], 5))
    assert repairs.get_batch_samples(call) == ([], None)
    with pytest.raises(
        UserError, match=r"run/checkpoint-12 is of pass 2 over a stream, and transformers .* other data"
    ):
        repairs.check_resumed_stream(host)
    state.global_step, state.epoch = 11, 1.0
    assert repairs.get_batch_samples(call) == (["micro-batch"], 5)
    repairs.check_resumed_stream(host)
    host._init_training_state, state.epoch = repairs.init_training_state, 1.5
    repairs.check_resumed_stream(host)
