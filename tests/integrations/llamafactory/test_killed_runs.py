"""Runs of `llamafactory-cli train` that are killed and started again, against the same runs without interruption."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from resumed_runs import SETTINGS, assert_same_run
from training_runs import free_port, stage1_arguments, tools_environment, train

HERE = Path(__file__).parent
ZERO2 = HERE.parents[2] / "recipes" / "deepspeed" / "zero2.json"
STAGE2 = {"train_only_router": True, "ada_moe_num_experts_list": None}


@pytest.fixture(scope="module")
def stage1(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, data_dir: Path
) -> tuple[Path, dict[str, Any]]:
    """An uninterrupted run, its folder and arguments."""
    output = tmp_path_factory.mktemp("uninterrupted") / "stage1"
    arguments = stage1_arguments(tiny_model_dir, data_dir, output) | SETTINGS
    train(arguments, output)
    return output, arguments


def killed_when(commands: Path | None, kill_when: str, **environment: str) -> dict[str, str]:
    """The environment of a process that kills itself then."""
    search_path = os.pathsep.join(map(str, (HERE / "killed", HERE / "no_compiler")))
    return tools_environment(commands, PYTHONPATH=search_path, KILL_WHEN=kill_when, **environment)


def run_killed(arguments: dict[str, Any], output: Path, kill_when: str, commands: Path | None = None) -> str:
    """Run `llamafactory-cli train` until it kills itself; returns what it printed."""
    config = output.with_suffix(".yaml")
    config.write_text(json.dumps(arguments | {"output_dir": str(output)}))
    result = subprocess.run(
        ["llamafactory-cli", "train", str(config)],
        env=killed_when(commands, kill_when),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert result.returncode == -signal.SIGKILL, result.stdout[-4000:]
    return result.stdout


def test_a_stage1_run_killed_twice_is_the_uninterrupted_one(
    stage1: tuple[Path, dict[str, Any]], tmp_path: Path, forked: Path
) -> None:
    uninterrupted, arguments = stage1
    output = tmp_path / "killed"
    run_killed(arguments, output, "optimizer.pt:2")
    # The new checkpoint is not whole, and so the old one is still there.
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    stale = output / "checkpoint-6" / "global_step6" / "of_the_killed_run.pt"
    stale.parent.mkdir()
    stale.touch()
    step = random.Random(0).randint(7, 9)
    printed = run_killed(arguments, output, f"step:{step}", forked)
    line = f"{output}: checkpoint-6 is skipped: scheduler.pt is missing; checkpoint-3 is taken"
    assert printed.count(line) == 1
    assert f"Resuming training from {output}/checkpoint-3." in printed
    assert (output / "checkpoint-6" / "optimizer.pt").exists()
    assert not stale.exists()
    train(arguments, output)
    assert_same_run(output, uninterrupted)
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-12"]


def run_processes(
    forked: Path, arguments: dict[str, Any], log: str, processes: int = 1, kill_when: str = "", rank: int = 0
) -> None:
    """Run in forked processes to the end, or until the one of this rank kills itself; the others die with it."""
    config = Path(f"{log}.yaml")
    config.write_text(json.dumps(arguments))
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **dict.fromkeys(names, str(processes))}
    running = []
    for index in range(processes):
        own = group | {"RANK": str(index), "LOCAL_RANK": str(index)} if processes > 1 else {}
        with Path(f"{log}.{index}").open("wb") as output:
            process = subprocess.Popen(
                [str(forked / "python"), "-m", "llamafactory.launcher", str(config)],
                env=killed_when(forked, kill_when if index == rank else "", **own),
                stdout=output,
                stderr=output,
            )
        running.append(process)
    code = running[rank].wait(timeout=300)
    assert code == (-signal.SIGKILL if kill_when else 0), Path(f"{log}.{rank}").read_text()[-4000:]
    for process in running:
        if kill_when:
            process.terminate()
        assert process.wait(timeout=300) in ({0} if not kill_when else {1, -signal.SIGTERM, -signal.SIGKILL})


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, stage1: tuple[Path, dict[str, Any]], data_dir: Path, forked: Path
) -> Path:
    """Folder of runs in processes of their own: `*_killed` were killed and resumed, `*_whole` were not.

    `unfinished` is a second stage that was killed in its final weights.
    """
    folder = tmp_path_factory.mktemp("runs")
    adapter, arguments = stage1
    stage2 = arguments | STAGE2 | {"adapter_name_or_path": str(adapter)}
    double = arguments | {"per_device_train_batch_size": 2}
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "stage2": (stage2, {"kill_when": "adapter_model.safetensors:3"}),
        "ddp": (double, {"processes": 2, "kill_when": "step:8", "rank": 0}),
        "zero2": (double | {"deepspeed": str(ZERO2)}, {"processes": 2, "kill_when": "rng_state_1.pth:2", "rank": 1}),
    }
    for kind, (values, launch) in kinds.items():
        unharmed = {key: value for key, value in launch.items() if key != "kill_when"}
        for name, more in (("whole", unharmed), ("killed", launch), ("killed", unharmed)):
            output = str(folder / f"{kind}_{name}")
            log = f"{output}{'.resumed' if name == 'killed' and more is unharmed else ''}.log"
            run_processes(forked, values | {"output_dir": output}, log, **more)
    unfinished = str(folder / "unfinished")
    run_processes(forked, stage2 | {"output_dir": unfinished}, unfinished, kill_when="adapter_model.safetensors:5")
    return folder


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("stage2", "checkpoint-9 is skipped: optimizer.pt is missing; checkpoint-6 is taken"),
        ("ddp", ""),
        ("zero2", "; checkpoint-3 is taken"),
    ],
)
def test_a_killed_run_goes_on_as_the_uninterrupted_one(runs: Path, kind: str, line: str) -> None:
    printed = (runs / f"{kind}_killed.resumed.log.0").read_text()
    assert "Resuming training from" in printed
    assert line in printed
    assert_same_run(runs / f"{kind}_killed", runs / f"{kind}_whole")


def test_half_written_final_weights_have_not_their_name(
    runs: Path, stage1: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    adapter, arguments = stage1
    killed = shutil.copytree(runs / "unfinished", tmp_path / "killed")
    assert (killed / ".partial" / "adapter_model.safetensors").exists()
    assert not (killed / "adapter_model.safetensors").exists()
    train(arguments | STAGE2 | {"adapter_name_or_path": str(adapter)}, killed)
    assert_same_run(killed, runs / "stage2_whole")
    assert not (killed / ".partial").exists()
