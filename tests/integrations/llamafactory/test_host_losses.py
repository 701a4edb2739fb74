"""Losses that LLaMA-Factory computes itself, from the logits: the mixture's are part of each of them, exactly once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import train
from transformers import TrainerCallback

COEFFICIENT = 0.5
LOSSES = {
    "dft": {"use_dft_loss": True},
    "eaft": {"use_eaft_loss": True},
    "asft": {"use_asft_loss": True},
    "label-smoothing": {"label_smoothing_factor": 0.2},
}
Gradients = dict[str, torch.Tensor]


class Recorder(TrainerCallback):
    """Keeps the gradients of the trainable parameters before the first optimizer step."""

    def __init__(self) -> None:
        self.gradients: Gradients = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = kwargs["model"].named_parameters()
        self.gradients = {name: p.grad.clone() for name, p in parameters if p.grad is not None}


@pytest.fixture
def chat_args(moe_args: dict[str, Any]) -> dict[str, Any]:
    """One step over ten conversations of many lengths, half of them old, in two micro-batches."""
    sft = {"stage": "sft", "template": "empty", "dataset": "en_chat,el_chat", "generate_lang_mask": True}
    sizes = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "max_steps": 1}
    return moe_args | sft | sizes | {"max_grad_norm": 0.0}


def step(args: dict[str, Any], output: Path, **options: Any) -> tuple[dict[str, float], Gradients]:
    """What a run of one step logs, and its gradients."""
    recorder = Recorder()
    (log,) = train(args, output, callbacks=[recorder], **options)
    return log, recorder.gradients


def difference(one: Gradients, other: Gradients) -> Gradients:
    assert one.keys() == other.keys()
    return {name: one[name] - other[name] for name in one}


def test_the_mixtures_loss_is_added_once(chat_args: dict[str, Any], tmp_path: Path) -> None:
    kinds = {"plain": {}, **LOSSES}
    alone = {kind: step(chat_args, tmp_path / kind, **options) for kind, options in kinds.items()}
    for kind in LOSSES:
        assert alone[kind][0]["loss"] != pytest.approx(alone["plain"][0]["loss"], abs=1e-2), kind
    for coefficient in ("aux_loss_coef", "lpr_loss_coef"):
        name, added = coefficient.removesuffix("_coef"), {coefficient: COEFFICIENT}
        outputs = {kind: tmp_path / f"{kind}-{name}" for kind in kinds}
        both = {kind: step(chat_args, outputs[kind], **options, **added) for kind, options in kinds.items()}
        expected = difference(both["plain"][1], alone["plain"][1])
        assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())
        for kind, (log, gradients) in both.items():
            assert log[name] == pytest.approx(both["plain"][0][name], abs=1e-6), kind
            assert log["loss"] == pytest.approx(alone[kind][0]["loss"] + COEFFICIENT * log[name], abs=2e-4), kind
            for parameter, gradient in difference(gradients, alone[kind][1]).items():
                message = f"{kind} {name} {parameter}"
                torch.testing.assert_close(gradient, expected[parameter], atol=1e-5, rtol=1e-3, msg=message)


def test_asft_compares_with_the_mixture_that_it_starts_from(chat_args: dict[str, Any], tmp_path: Path) -> None:
    """At the first step both are the same model, whose divergence from itself is 0."""
    train(chat_args, tmp_path / "stage1", learning_rate=0.05)
    stage2 = chat_args | {"adapter_name_or_path": str(tmp_path / "stage1"), "train_only_router": True}
    stage2["gradient_accumulation_steps"] = 1  # the host does not divide this loss by the micro-batches
    runs = {
        "dft": {"use_dft_loss": True},
        "asft": {"use_asft_loss": True},
        "of-base": {"use_asft_loss": True, "ref_model": stage2["model_name_or_path"]},
    }
    # The host does not divide this loss by the micro-batches.
    loss = {
        name: step(stage2, tmp_path / name, gradient_accumulation_steps=1, **runs[name])[0]["loss"] for name in runs
    }
    assert loss["asft"] == pytest.approx(loss["dft"], abs=1e-5)
    assert loss["of-base"] > loss["dft"] + 1e-3
