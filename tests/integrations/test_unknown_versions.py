"""Versions of PEFT and transformers whose hooks fail: nothing is half registered, and no mixture is trained wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neuronmoe_plugins.errors import UserError


def knows_moe() -> list[bool]:
    from peft import PeftType, mapping

    tables = [table for name, table in vars(mapping).items() if name.startswith("PEFT_TYPE_TO_")]
    return ["MOE" in PeftType.__members__, any("MOE" in table for table in tables)]


def test_a_registration_that_ends_half_way_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    import peft

    from neuronmoe_plugins.integrations import peft as integration

    register = integration.register_peft_method

    def register_half(**method: Any) -> None:
        register(**method)
        raise RuntimeError("half way")

    integration.remove_peft_type("MOE")
    for name, table in vars(peft.mapping).items():
        if name.startswith("PEFT_TYPE_TO_"):
            table.pop("MOE", None)
    try:
        monkeypatch.setattr(integration, "register_peft_method", register_half)
        with pytest.raises(RuntimeError, match="half way"):
            integration.register(peft.peft_model)
        assert knows_moe() == [False, False]
    finally:
        monkeypatch.undo()
        integration.register(peft.peft_model)
    assert knows_moe() == [True, True]


def test_a_trainer_that_could_not_be_extended_trains_no_mixture(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, trainer

    from neuronmoe_plugins.integrations.refusals import refuse
    from neuronmoe_plugins.tuner import MoeConfig

    monkeypatch.setattr(Trainer, "train", Trainer.train)
    refuse(trainer, AttributeError("gone"))
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", max_steps=1, save_strategy="no")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    data = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}]
    assert Trainer(base, arguments, train_dataset=data).train().global_step == 1
    mixture = get_peft_model(base, MoeConfig(num_experts=2, task_type="CAUSAL_LM", aux_loss_coef=0.1))
    with pytest.raises(
        UserError, match=r"^moe cannot run with transformers \S+: .* extend transformers.trainer \(Attr"
    ):
        Trainer(mixture, arguments, train_dataset=data).train()
