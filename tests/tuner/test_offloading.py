"""Accelerate offloads a model that has an adapter already: it computes the same, and does not pretend to train."""

from __future__ import annotations

from pathlib import Path

import accelerate
import pytest
import torch
from peft import PeftModel, get_peft_model

from tuner.tiny import GROUPS, moe_config, randomised, tiny_model

CPU = torch.device("cpu")
INNER = "base_model.model.model"
PLACES = {f"{INNER}.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")} | {
    f"{INNER}.layers.0": "disk",
    f"{INNER}.layers.1": "cpu",
    f"{INNER}.layers.2": "disk",
    "base_model.model.lm_head": "cpu",
}


def offload(model: PeftModel, how: str, folder: Path) -> None:
    if how == "memory":
        accelerate.cpu_offload(model, execution_device=CPU)
    elif how == "disk":
        accelerate.disk_offload(model, folder, execution_device=CPU)
    else:
        accelerate.dispatch_model(model, PLACES, main_device="cpu", offload_dir=folder)


@pytest.mark.parametrize("implementation", ["loop", "sorted", "grouped_mm"])
@pytest.mark.parametrize("how", ["memory", "disk", "layers"])
def test_logits_stay(how: str, implementation: str, tmp_path: Path) -> None:
    model = randomised(get_peft_model(tiny_model(), moe_config(**GROUPS, experts_implementation=implementation))).eval()
    tokens = torch.randint(3, 40, (2, 6))
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        offload(model, how, tmp_path)
        for _ in range(2):
            torch.testing.assert_close(model(input_ids=tokens).logits, expected)


def test_training_is_refused(tmp_path: Path) -> None:
    model = get_peft_model(tiny_model(), moe_config(num_experts=2)).train()
    offload(model, "disk", tmp_path)
    tokens = torch.randint(3, 40, (2, 6))
    with pytest.raises(ValueError, match="experts are on the meta device: offloaded weights cannot be trained"):
        model(input_ids=tokens, labels=tokens)


def test_an_adapter_that_was_never_filled_is_refused() -> None:
    model = get_peft_model(tiny_model(), moe_config(num_experts=2), low_cpu_mem_usage=True).eval()
    for name, module in model.named_modules():
        if name.endswith("moe_router.default"):
            module.to_empty(device="cpu")
    with pytest.raises(ValueError, match="experts are on the meta device: load the adapter's weights"):
        model(input_ids=torch.randint(3, 40, (1, 4)))
