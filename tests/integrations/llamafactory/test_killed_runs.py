"""Runs of `llamafactory-cli train` that are killed and started again, against the same runs without interruption."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from resumed_runs import SETTINGS, assert_same_run
from training_runs import stage1_arguments, train

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


def run_killed(arguments: dict[str, Any], output: Path, kill_when: str) -> str:
    """Run `llamafactory-cli train` until it kills itself; returns what it printed."""
    config = output.with_suffix(".yaml")
    config.write_text(json.dumps(arguments | {"output_dir": str(output)}))
    search_path = os.pathsep.join([str(HERE / "killed"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    result = subprocess.run(
        [Path(sys.executable).with_name("llamafactory-cli"), "train", str(config)],
        env=os.environ | {"PYTHONPATH": search_path, "KILL_WHEN": kill_when},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert result.returncode == -signal.SIGKILL, result.stdout[-4000:]
    return result.stdout


def test_a_stage1_run_killed_twice_is_the_uninterrupted_one(
    stage1: tuple[Path, dict[str, Any]], tmp_path: Path
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
    printed = run_killed(arguments, output, f"step:{step}")
    line = f"{output}: checkpoint-6 is skipped: scheduler.pt is missing; checkpoint-3 is taken"
    assert printed.count(line) == 1
    assert f"Resuming training from {output}/checkpoint-3." in printed
    assert (output / "checkpoint-6" / "optimizer.pt").exists()
    assert not stale.exists()
    train(arguments, output)
    assert_same_run(output, uninterrupted)
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-12"]


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory, stage1: tuple[Path, dict[str, Any]], data_dir: Path) -> Path:
    """Folder of runs in processes of their own: `*_killed` were killed and resumed, `*_whole` were not.

    `unfinished` is a second stage that was killed in its final weights.
    """
    folder = tmp_path_factory.mktemp("forked")
    adapter, arguments = stage1
    stage2 = arguments | STAGE2 | {"adapter_name_or_path": str(adapter)}
    double = arguments | {"per_device_train_batch_size": 2}
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "stage2": (stage2, {"kill_when": "adapter_model.safetensors:3"}),
        "ddp": (double, {"processes": 2, "kill_when": "step:8", "rank": 0}),
        "zero2": (double | {"deepspeed": str(ZERO2)}, {"processes": 2, "kill_when": "rng_state_1.pth:2", "rank": 1}),
    }
    runs = []
    for kind, (values, launch) in kinds.items():
        unharmed = {key: value for key, value in launch.items() if key != "kill_when"}
        for name, more in (("whole", unharmed), ("killed", launch), ("killed", unharmed)):
            output = str(folder / f"{kind}_{name}")
            log = f"{output}{'.resumed' if name == 'killed' and more is unharmed else ''}.log"
            runs.append({"arguments": values | {"output_dir": output}, "log": log, **more})
    unfinished = {"arguments": stage2 | {"output_dir": str(folder / "unfinished")}, "log": str(folder / "unfinished")}
    runs.append(unfinished | {"kill_when": "adapter_model.safetensors:5"})
    (folder / "runs.json").write_text(json.dumps(runs))
    subprocess.run([sys.executable, HERE / "forked_runs.py", folder / "runs.json"], check=True, timeout=600)
    return folder


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("stage2", "checkpoint-9 is skipped: optimizer.pt is missing; checkpoint-6 is taken"),
        ("ddp", ""),
        ("zero2", "; checkpoint-3 is taken"),
    ],
)
def test_a_killed_run_goes_on_as_the_uninterrupted_one(forked: Path, kind: str, line: str) -> None:
    printed = (forked / f"{kind}_killed.resumed.log.0").read_text()
    assert "Resuming training from" in printed
    assert line in printed
    assert_same_run(forked / f"{kind}_killed", forked / f"{kind}_whole")


def test_half_written_final_weights_have_not_their_name(
    forked: Path, stage1: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    adapter, arguments = stage1
    killed = shutil.copytree(forked / "unfinished", tmp_path / "killed")
    assert (killed / ".partial" / "adapter_model.safetensors").exists()
    assert not (killed / "adapter_model.safetensors").exists()
    train(arguments | STAGE2 | {"adapter_name_or_path": str(adapter)}, killed)
    assert_same_run(killed, forked / "stage2_whole")
    assert not (killed / ".partial").exists()
