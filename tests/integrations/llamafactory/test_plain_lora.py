"""LoRA in LLaMA-Factory, as people have it without `moe`: this package changes nothing of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_runs import tools_environment

PROGRAM = """
import json, sys
from llamafactory.train.tuner import run_exp
for file in sys.argv[1:]:
    run_exp(json.load(open(file)))
"""
STAGES = {"pt": {"dataset": "en_even,el_even"}, "sft": {"dataset": "en_chat,el_chat", "template": "empty"}}
ARGUMENTS = "training_args.bin"
TIMES = ("elapsed_time", "remaining_time", "runtime", "per_second")


@pytest.fixture(scope="module")
def outputs(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, data_dir: Path, forked: Path
) -> dict[str, Path]:
    """Folders with a run per stage: `without` the package in a fresh process, and `with` it in a forked one."""
    folder = tmp_path_factory.mktemp("lora")
    args = {
        "model_name_or_path": str(tiny_model_dir),
        "dataset_dir": str(data_dir),
        "do_train": True,
        "finetuning_type": "lora",
        "lora_dropout": 0.1,
        "cutoff_len": 64,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    for name, switch, python in (("without", "0", sys.executable), ("with", "1", forked / "python")):
        for stage, own in STAGES.items():
            run = args | {"stage": stage, "output_dir": stage} | own
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{stage}.json").write_text(json.dumps(run))
        done = subprocess.run(
            [python, "-c", PROGRAM, *(f"{stage}.json" for stage in STAGES)],
            cwd=folder / name,
            env=tools_environment(NEURONMOE_AUTOLOAD=switch),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-4000:]
    return {name: folder / name for name in ("without", "with")}


@pytest.mark.parametrize("stage", STAGES)
def test_runs_have_the_same_weights_losses_and_files(stage: str, outputs: dict[str, Path]) -> None:
    without, with_it = (contents(folder / stage) for folder in outputs.values())
    assert without.keys() == with_it.keys() >= {"adapter_model.safetensors", "trainer_log.jsonl", "trainer_state.json"}
    assert len(without["trainer_log.jsonl"]) == 5
    for name in without:
        assert without[name] == with_it[name], name


def contents(folder: Path) -> dict[str, Any]:
    """File -> what is in it, without the times, and without the order of what PEFT has in a set.

    Of the pickled arguments it is that they are there: those of transformers 4 have a time in the name of a folder.
    """
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.name == ARGUMENTS or _content(path) for name, path in files.items()}


def _content(path: Path) -> Any:
    if path.name == "adapter_config.json":
        fields = json.loads(path.read_text())
        return fields | {"target_modules": sorted(fields["target_modules"])}
    if path.suffix == ".jsonl":
        return [_without_times(json.loads(line)) for line in path.read_text().splitlines()]
    return _without_times(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()


def _without_times(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_times(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _without_times(entry) for key, entry in value.items() if not key.endswith(TIMES)}
    return value
