"""Runs of LLaMA-Factory, as a command and in this process, and what they log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def stage1_arguments(model: Path, data_dir: Path, output: Path) -> dict[str, Any]:
    """Arguments of a short stage 1 run in float32."""
    return {
        "model_name_or_path": str(model),
        "stage": "pt",
        "do_train": True,
        "finetuning_type": "moe",
        "ada_moe_num_experts_list": "3,1,1,2",
        "dataset": "el_even",
        "dataset_dir": str(data_dir),
        "cutoff_len": 64,
        "output_dir": str(output),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }


def llamafactory_train(yaml: Path, *overrides: str, **environment: str) -> str:
    """Run it from another folder, and return what it printed."""
    tools = Path(sys.executable).parent
    result = subprocess.run(
        [tools / "llamafactory-cli", "train", str(yaml), *overrides],
        env=os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"} | environment,
        cwd=yaml.parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


def train(args: dict[str, Any], output: Path, **overrides: Any) -> list[dict[str, float]]:
    """Run LLaMA-Factory's training in this process and return the logged steps."""
    from accelerate.state import AcceleratorState
    from llamafactory.train.tuner import run_exp

    AcceleratorState._reset_state(reset_partial_state=True)
    run_exp(args | {"output_dir": str(output)} | overrides)
    return losses(output)


def losses(output_dir: Path) -> list[dict[str, float]]:
    """The training steps of trainer_state.json."""
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]
