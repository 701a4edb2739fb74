"""The tuner against outputs of the published code, with the published checkpoint's weights copied over."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from neuronmoe_plugins.tuner import MoeConfig
from tuner.tiny import GOLDEN

NUM_EXPERTS = [3, 1, 2, 4]
INPUTS = ("input_ids", "attention_mask", "labels")


def golden_model(base: torch.nn.Module, **options: object) -> PeftModel:
    model = get_peft_model(base, MoeConfig(task_type="CAUSAL_LM", num_experts=NUM_EXPERTS, topk=2, **options))
    published = load_file(GOLDEN / "adapter" / "adapter_model.safetensors")
    ours = model.state_dict()
    for layer, count in enumerate(NUM_EXPERTS):
        if count == 1:
            continue
        prefix = f"base_model.model.model.layers.{layer}.mlp"
        for projection in ("gate_proj", "up_proj", "down_proj"):
            experts = [published[f"{prefix}.moe_experts.{j}.{projection}.weight"] for j in range(count - 1)]
            ours[f"{prefix}.moe_{projection}.default"].copy_(torch.stack(experts))
        ours[f"{prefix}.moe_router.default.weight"].copy_(published[f"{prefix}.moe_router_embedding.weight"])
    return model


def test_logits(golden: dict[str, torch.Tensor], golden_base: torch.nn.Module) -> None:
    model = golden_model(golden_base).eval()
    with torch.no_grad():
        logits = model(input_ids=golden["input_ids"], attention_mask=golden["attention_mask"]).logits
    torch.testing.assert_close(logits, golden["logits_eval"], atol=1e-5, rtol=0)


def test_stage_1_losses(golden: dict[str, torch.Tensor], golden_base: torch.nn.Module) -> None:
    model = golden_model(golden_base, aux_loss_coef=0.01).train()
    loss = model(**{name: golden[name] for name in INPUTS}).loss
    metrics = model.base_model.pop_metrics()
    assert loss.item() == pytest.approx(golden["stage1_total_loss"].item(), abs=1e-5)
    assert metrics["lm_loss"] == pytest.approx(golden["lm_loss"].item(), abs=1e-5)
    assert metrics["aux_loss"] == pytest.approx(golden["balance_loss"].item(), abs=1e-5)


def test_stage_2_losses_with_the_published_double_softmax(
    golden: dict[str, torch.Tensor], golden_base: torch.nn.Module
) -> None:
    model = golden_model(golden_base, aux_loss_coef=0.01, lpr_loss_coef=0.1, lpr_double_softmax=True).train()
    loss = model(**{name: golden[name] for name in (*INPUTS, "old_language_mask")}).loss
    assert loss.item() == pytest.approx(golden["stage2_total_loss_double_softmax"].item(), abs=1e-5)
    lpr = model.base_model.pop_metrics()["lpr_loss"]
    assert lpr == pytest.approx(golden["lpr_loss_double_softmax"].item(), abs=1e-5)


def test_lpr_of_the_logits_is_the_cross_entropy_to_expert_0(
    golden: dict[str, torch.Tensor], golden_base: torch.nn.Module
) -> None:
    model = golden_model(golden_base, lpr_loss_coef=0.1).train()
    model(**{name: golden[name] for name in (*INPUTS, "old_language_mask")})
    old = golden["old_language_mask"].flatten() & golden["attention_mask"].flatten().bool()
    expected = [
        torch.nn.functional.cross_entropy(golden[f"router_logits_{i}"][old], torch.zeros(int(old.sum())).long())
        for i in range(3)
    ]
    lpr = model.base_model.pop_metrics()["lpr_loss"]
    assert lpr == pytest.approx(torch.stack(expected).mean().item(), abs=1e-5)
