"""transformers' own adapter functions: `add_adapter`, `load_adapter`, `from_pretrained` of an adapter's folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tuner.tiny import logits, moe_config, randomised, tiny_model

BATCH = {"input_ids": torch.arange(3, 21).view(2, 9), "attention_mask": torch.ones(2, 9, dtype=torch.long)}


@pytest.fixture
def base_dir(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_added_saved_and_loaded(base_dir: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_dir)
    base = logits(model, BATCH)
    model.add_adapter(moe_config(num_experts=[4, 1, 2]))
    expected = logits(randomised(model), BATCH)
    assert not torch.equal(expected, base)
    model.disable_adapters()
    assert torch.equal(logits(model, BATCH), base)
    model.enable_adapters()
    assert torch.equal(logits(model, BATCH), expected)
    model.save_pretrained(tmp_path / "adapter")
    assert len(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == 8
    named = AutoModelForCausalLM.from_pretrained(base_dir)
    named.load_adapter(str(tmp_path / "adapter"), "greek", low_cpu_mem_usage=True)
    assert named.active_adapters() == ["greek"]
    for loaded in (
        named,
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter"),
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"),
    ):
        assert torch.equal(logits(loaded, BATCH), expected)
        assert not any(p.requires_grad for name, p in loaded.named_parameters() if ".moe_" in name)


def test_two_adapters(base_dir: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_dir)
    expected = {}
    for seed, (name, experts) in enumerate({"el": [4, 1, 2], "tr": [1, 3, 2]}.items()):
        model.add_adapter(moe_config(num_experts=experts), name)
        expected[name] = logits(randomised(model, seed), BATCH) if name == "tr" else None
    model.set_adapter("el")
    expected["el"] = logits(model, BATCH)
    assert not torch.equal(expected["el"], expected["tr"])
    model.save_pretrained(tmp_path / "el")
    model.set_adapter("tr")
    assert torch.equal(logits(model, BATCH), expected["tr"])
    model.delete_adapter("el")
    assert torch.equal(logits(model, BATCH), expected["tr"])
    model.load_adapter(str(tmp_path / "el"), "again")
    model.set_adapter("again")
    assert torch.equal(logits(model, BATCH), expected["el"])
    with pytest.raises(ValueError, match="already"):
        model.load_adapter(str(tmp_path / "el"), "again")


def test_given_tensors_and_configuration(base_dir: Path, tmp_path: Path) -> None:
    model = tiny_model()
    model.add_adapter(moe_config(num_experts=[4, 1, 2]))
    expected = logits(randomised(model), BATCH)
    loaded = AutoModelForCausalLM.from_pretrained(base_dir)
    loaded.load_adapter(
        adapter_state_dict=model.get_adapter_state_dict(),
        peft_config=moe_config(num_experts=[4, 1, 2]),
        is_trainable=True,
    )
    assert torch.equal(logits(loaded, BATCH), expected)
    assert any(p.requires_grad for name, p in loaded.named_parameters() if ".moe_" in name)


def test_other_methods_load_as_ever(base_dir: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    expected = logits(model, BATCH)
    model.save_pretrained(tmp_path / "lora")
    loaded = AutoModelForCausalLM.from_pretrained(base_dir)
    loaded.load_adapter(str(tmp_path / "lora"))
    assert torch.equal(logits(loaded, BATCH), expected)
