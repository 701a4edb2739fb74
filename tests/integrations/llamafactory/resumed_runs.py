"""What resumed runs are started with, and what they have in common with uninterrupted ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import losses

TIMES = {"elapsed_time", "remaining_time"}
# Means over two steps, and checkpoints in the middle of them.
SETTINGS: dict[str, Any] = {
    "dataset": "en_even,el_even",
    "mix_strategy": "interleave_under",
    "generate_lang_mask": True,
    "aux_loss_coef": 0.01,
    "lpr_loss_coef": 0.1,
    "lr_scheduler_type": "constant",
    "save_strategy": "steps",
    "save_steps": 3,
    "save_total_limit": 1,
    "logging_steps": 2,
    "max_steps": 12,
}


def written_log(output: Path) -> list[dict[str, Any]]:
    """trainer_log.jsonl without what tells the time."""
    entries = map(json.loads, (output / "trainer_log.jsonl").read_text().splitlines())
    return [{key: value for key, value in entry.items() if key not in TIMES} for entry in entries]


def assert_same_run(output: Path, uninterrupted: Path) -> None:
    """Every value logged, both logs, and the adapter."""
    expected, seen = losses(uninterrupted), losses(output)
    assert len(expected) >= 6
    assert [step.keys() for step in seen] == [step.keys() for step in expected]
    for one, other in zip(seen, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    for one, other in zip(written_log(output), written_log(uninterrupted), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    final = [json.loads((path / "trainer_state.json").read_text()) for path in (output, uninterrupted)]
    assert final[0]["global_step"] == final[1]["global_step"]
    assert final[0]["log_history"][-1]["train_loss"] == pytest.approx(
        final[1]["log_history"][-1]["train_loss"], abs=1e-6
    )
    weights, expected_weights = (load_file(path / "adapter_model.safetensors") for path in (output, uninterrupted))
    assert weights.keys() == expected_weights.keys()
    for name, tensor in weights.items():
        assert tensor.dtype == expected_weights[name].dtype
        torch.testing.assert_close(tensor, expected_weights[name], rtol=0, atol=1e-6, msg=name)
