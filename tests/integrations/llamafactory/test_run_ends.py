"""Trainings that are interrupted, or find the disk full: one line that says what is left of them."""

from __future__ import annotations

import errno
import io
import os
import runpy
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neuronmoe_plugins.files import new_files
from neuronmoe_plugins.integrations import commands

LLAMAFACTORY = "llamafactory-cli"


@pytest.fixture(autouse=True)
def explanations(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What this file's runs leave goes with them."""
    monkeypatch.setattr(commands, "explanations", commands.explanations)
    before = dict(commands.explanations)
    yield commands.explanations
    commands.explanations.clear()
    commands.explanations.update(before)


def run_until_disk_is_full(args: dict[str, Any], error: Exception) -> BaseException:
    """Train with a disk on which optimizer.pt of checkpoint-4 has no place; returns what ended the run."""
    import torch
    from accelerate.state import AcceleratorState
    from llamafactory.train.tuner import run_exp

    save = torch.save

    def save_on_full_disk(content: Any, place: Any, *more: Any, **options: Any) -> None:
        if str(place).endswith("checkpoint-4/optimizer.pt"):
            raise error
        save(content, place, *more, **options)

    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(type(error)) as ended:
        patch.setattr(torch, "save", save_on_full_disk)
        run_exp(args | {"save_strategy": "steps", "save_steps": 2})
    return ended.value


def test_a_full_disk_leaves_the_checkpoint_before(moe_args: dict[str, Any], explanations: dict[str, Any]) -> None:
    from llamafactory.hparams import get_train_args

    output = moe_args["output_dir"]
    error = run_until_disk_is_full(moe_args, OSError(errno.ENOSPC, "No space left on device"))
    explain = explanations[LLAMAFACTORY]
    goes_on = "the same command goes on from checkpoint-2"
    assert explain(error) == f"output_dir: {output} cannot be written: No space left on device; {goes_on}"
    assert explain(KeyboardInterrupt()) == f"interrupted; {goes_on}"
    assert explain(RuntimeError("[enforce fail at inline_container.cc:626] . PytorchStreamWriter failed")) == (
        f"output_dir: {output} cannot be written: torch could not write a whole file (is the disk full?); {goes_on}"
    )
    wrapped = RuntimeError("something else")
    wrapped.__cause__ = OSError(errno.EROFS, "Read-only file system", f"{output}/trainer_log.jsonl")
    assert explain(wrapped) == (f"{output}/trainer_log.jsonl cannot be written: Read-only file system; {goes_on}")
    for other in (RuntimeError("another"), FileNotFoundError(errno.ENOENT, "No such file or directory", output)):
        assert explain(other) is None
    lora = {key: value for key, value in moe_args.items() if key != "ada_moe_num_experts_list"}
    get_train_args(lora | {"finetuning_type": "lora"})
    assert LLAMAFACTORY not in explanations, "other methods' runs end as the host lets them"


def test_a_run_without_a_checkpoint_starts_again(moe_args: dict[str, Any], explanations: dict[str, Any]) -> None:
    from llamafactory.hparams import get_train_args

    get_train_args(moe_args)
    line = "interrupted; there is no whole checkpoint, the same command starts from the beginning"
    assert explanations[LLAMAFACTORY](KeyboardInterrupt()) == line


def test_what_was_written_of_the_end_makes_room(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), new_files(tmp_path, last="weights") as partial:
        (partial / "weights").write_text("a part")
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []


def end_of(launcher: Path, capfd: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """The exit code, and what is written, of a command whose launcher is this file; None is the interpreter's own."""
    code = None
    try:
        runpy.run_path(str(launcher))
    except BaseException as error:
        # As torch's hook calls the one before it, once there is a process group.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stderr", io.StringIO())
            try:
                commands._excepthook(lambda *_: None, type(error), error, error.__traceback__)
            except SystemExit as end:
                code = end.code
    return code, capfd.readouterr().err


def test_an_interrupt_is_one_line_of_moe_runs_alone(
    tmp_path: Path, explanations: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    launcher = tmp_path / "llamafactory" / "launcher.py"
    launcher.parent.mkdir()
    launcher.write_text("raise KeyboardInterrupt")
    explanations.pop(LLAMAFACTORY, None)
    assert end_of(launcher, capfd) == (None, "")
    explanations[LLAMAFACTORY] = lambda error: "interrupted; so far"
    assert end_of(launcher, capfd) == (130, "llamafactory-cli: interrupted; so far\n")


@pytest.mark.parametrize("is_moe", [True, False])
def test_the_launcher_leaves_an_interrupt_to_its_workers(is_moe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], env: dict[str, str], **_options: Any) -> None:
        (Path(env[commands.REPORTS]) / "a worker's").touch()
        os.kill(os.getpid(), signal.SIGINT)
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(commands, "_check_arguments", lambda: is_moe)
    with pytest.raises(SystemExit if is_moe else KeyboardInterrupt) as ended:
        commands._WorkersSubprocess(SimpleNamespace(run=run)).run(["torchrun"], check=True)
    assert not is_moe or ended.value.code == commands.INTERRUPTED
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
