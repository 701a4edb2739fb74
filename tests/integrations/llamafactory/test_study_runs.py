"""A study's own ways of training, by LLaMA-Factory's command: both stages of a whole model that is saved in between."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from neuronmoe_plugins.study.results import sizes_of
from neuronmoe_plugins.study.runs import known_runs
from neuronmoe_plugins.study.trainings import load_trainings

SHORT = {"cutoff_len": 64, "per_device_train_batch_size": 4, "max_steps": 2, "bf16": False, "disable_tqdm": True}


def test_stage2_goes_on_with_the_weights_of_stage1(
    tiny_model_dir: Path, data_dir: Path, tmp_path: Path, forked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "el.jsonl").write_text('{"text": "a"}\n')
    spec = {
        "model": str(tiny_model_dir),
        "dataset_dir": str(data_dir),
        "source": {"language": "en"},
        "targets": {"el": {"train": "el_even", "replay": "en_even", "texts": {"el": "el.jsonl"}}},
        **{"learning_rates": 0.01, "seeds": 1, "training": SHORT, "stage2": {"max_steps": 1}},
        "arms": {"whole": {"method": "freeze", "layers": -1}},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    monkeypatch.setattr(sys, "executable", str(forked / "python"))
    _, training = load_trainings(tmp_path / "spec.yaml", tmp_path / "out")
    (run,) = known_runs(training)

    run.train("stage1")
    run.train("stage2")

    assert [step.name for step in run.steps] == ["stage1", "stage2", "evaluate-stage1", "evaluate-stage2"]
    before = load_file(tiny_model_dir / "model.safetensors")
    first, second = (load_file(run.folder / stage / "model.safetensors") for stage in ("stage1", "stage2"))
    changed = {name for name in before if not first[name].equal(before[name])}
    assert changed == {name for name in before if "layers.0.mlp." in name}
    assert changed == {name for name in before if not second[name].equal(first[name])}
    sizes = sizes_of(run, "stage2")
    assert sizes["added_parameters"] == sizes["trained_parameters"] == 3 * 32 * 48
    assert sizes["file_bytes"] == (run.folder / "stage2" / "model.safetensors").stat().st_size
