"""Runs of LLaMA-Factory, as a command and in this process, and what they log."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from forking.commands import commands_environment


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


def llamafactory_train(yaml: Path, *overrides: str, commands: Path | None = None, **environment: str) -> str:
    """Run the command, or the one that is forked, from another folder, and return what it printed."""
    result = subprocess.run(
        ["llamafactory-cli", "train", str(yaml), *overrides],
        env=tools_environment(commands, **environment),
        cwd=yaml.parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, _crashes(result.stdout) + result.stdout[-4000:]
    return result.stdout


def _crashes(output: str) -> str:
    """What a worker that crashed outside Python said, which torchrun's own traceback pushes out of sight."""
    lines = output.splitlines()
    starts = [
        number for number, line in enumerate(lines) if line.startswith(("terminate called", "Fatal Python error"))
    ]
    return "".join(line + "\n" for start in starts for line in lines[start : start + 40])


def tools_environment(commands: Path | None = None, **environment: str) -> dict[str, str]:
    """The environment in which the commands are found, and DeepSpeed compiles nothing.

    Args:
        commands: The folder of those that are forked; without it, they are those beside this Python.
        **environment: What to add.
    """
    no_compiler = Path(__file__).parent / "no_compiler"
    return commands_environment(commands) | {
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": os.pathsep.join([str(no_compiler), *filter(None, [os.environ.get("PYTHONPATH")])]),
        **environment,
    }


def free_port() -> str:
    """One that is free now, on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def save_adapter(folder: Path, base: Path, **fields: Any) -> str:
    """Save an untrained adapter of the base model with these fields of MoeConfig; returns the folder's name."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from neuronmoe_plugins.tuner import MoeConfig

    config = MoeConfig(task_type="CAUSAL_LM", **fields)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return str(folder)


def refusal(args: dict[str, Any] | list[str] | None) -> str:
    """The line with which a training run is refused, before anything is loaded or written."""
    from llamafactory.train import tuner
    from transformers import AutoTokenizer, PreTrainedModel

    from neuronmoe_plugins.errors import UserError

    def load(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("something is loaded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoTokenizer, "from_pretrained", load)
        patch.setattr(PreTrainedModel, "from_pretrained", load)
        with pytest.raises(UserError) as error:
            tuner.run_exp(args)
    line = str(error.value)
    assert "\n" not in line
    assert not isinstance(args, dict) or not Path(args.get("output_dir", "nowhere")).exists()
    return line


def train(
    args: dict[str, Any], output: Path, callbacks: list[Any] | None = None, **overrides: Any
) -> list[dict[str, float]]:
    """Run LLaMA-Factory's training in this process and return the logged steps."""
    from accelerate.state import AcceleratorState
    from llamafactory.train.tuner import run_exp

    AcceleratorState._reset_state(reset_partial_state=True)
    run_exp(args | {"output_dir": str(output)} | overrides, callbacks)
    return losses(output)


def losses(output_dir: Path) -> list[dict[str, float]]:
    """The training steps of trainer_state.json."""
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]
