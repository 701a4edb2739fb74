"""PEFT's own entry points on `moe`, in a process that imported nothing of this package."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tuner.tiny import tiny_model


def config(**options: object) -> peft.PeftConfig:
    return peft.get_peft_config({"peft_type": "MOE", "task_type": "CAUSAL_LM", "topk": 2, **options})


def randomised(model: PeftModel) -> PeftModel:
    """Give every adapter parameter a value of its own, so that a lost or swapped tensor shows."""
    generator = torch.Generator().manual_seed(11)
    for name, parameter in model.named_parameters():
        if "moe_" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("topk", [2, 3])
def test_a_fresh_mixture_is_the_base_model(family: str, topk: int, batch: dict[str, torch.Tensor]) -> None:
    expected = logits(tiny_model(family), batch)
    model = get_peft_model(tiny_model(family), config(num_experts=[4, 1, 2], topk=topk))
    torch.testing.assert_close(logits(model, batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("options", [{}, {"adapter_name": "greek"}, {"low_cpu_mem_usage": True}])
def test_saved_and_loaded_logits_are_identical(
    family: str, options: dict[str, object], tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    model = randomised(get_peft_model(tiny_model(family), config(num_experts=[4, 1, 2])))
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path, **options)
    assert torch.equal(logits(loaded, batch), expected)
    assert not torch.equal(logits(tiny_model(family), batch), expected)


def test_the_file_holds_the_adapter_alone(tmp_path: Path) -> None:
    get_peft_model(tiny_model(), config(num_experts=[4, 1, 2])).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers"
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        f"{prefix}.{layer}.mlp.{name}": shape
        for layer, count in ((0, 4), (2, 2))
        for name, shape in {
            "moe_gate_proj": (count - 1, 24, 16),
            "moe_up_proj": (count - 1, 24, 16),
            "moe_down_proj": (count - 1, 16, 24),
            "moe_router.weight": (count, 16),
        }.items()
    }
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["peft_type"], saved["num_experts"], saved["topk"]) == ("MOE", [4, 1, 2], 2)


def test_auto_class_in_a_process_that_only_imports_peft(
    tmp_path: Path, batch: dict[str, torch.Tensor], forked_python: Path
) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    model = randomised(get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config()))
    model.save_pretrained(tmp_path / "adapter")
    torch.save(batch["input_ids"], tmp_path / "input_ids.pt")
    program = """
import sys, torch, peft
assert "neuronmoe_plugins.tuner" in sys.modules
model = peft.AutoPeftModelForCausalLM.from_pretrained(sys.argv[1] + "/adapter").eval()
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[1] + "/input_ids.pt")).logits, sys.argv[1] + "/logits.pt")
"""
    subprocess.run([forked_python / "python", "-c", program, str(tmp_path)], check=True, timeout=120)
    with torch.no_grad():
        expected = model(batch["input_ids"]).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


def test_only_adapters_are_trainable_and_in_stage_2_only_routers() -> None:
    def trainable(**options: object) -> set[str]:
        model = get_peft_model(tiny_model(), config(num_experts=[4, 1, 2], **options))
        with model.disable_adapter():
            pass
        return {name.split(".mlp.")[1] for name, p in model.named_parameters() if p.requires_grad}

    routers = {"moe_router.default.weight"}
    assert trainable() == routers | {f"moe_{name}_proj.default" for name in ("gate", "up", "down")}
    assert trainable(train_only_router=True) == routers


def test_stage_2_continues_from_a_saved_stage_1(tmp_path: Path, batch: dict[str, torch.Tensor]) -> None:
    model = randomised(get_peft_model(tiny_model(), config(num_experts=[4, 1, 2])))
    model.save_pretrained(tmp_path)
    stage_2 = peft.PeftConfig.from_pretrained(tmp_path)
    stage_2.train_only_router = True
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path, is_trainable=True, config=stage_2)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert {name.rsplit(".", 3)[1] for name, p in loaded.named_parameters() if p.requires_grad} == {"moe_router"}


def test_disabled_adapter_is_the_base_exactly(batch: dict[str, torch.Tensor]) -> None:
    expected = logits(tiny_model(), batch)
    model = randomised(get_peft_model(tiny_model(), config(num_experts=3)))
    assert not torch.equal(logits(model, batch), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), expected)
    assert torch.equal(logits(model.unload(), batch), expected)


def test_two_adapters_with_different_expert_counts(batch: dict[str, torch.Tensor]) -> None:
    model = randomised(get_peft_model(tiny_model(), config(num_experts=[4, 1, 2])))
    first = logits(model, batch)
    model.add_adapter("second", config(num_experts=[1, 3, 2]))
    torch.testing.assert_close(logits(model, batch), first)
    model.set_adapter("second")
    torch.testing.assert_close(logits(model, batch), logits(tiny_model(), batch), atol=1e-5, rtol=0)
    model.delete_adapter("second")
    model.set_adapter("default")
    assert torch.equal(logits(model, batch), first)


def test_experts_keep_the_dtype_of_the_base(tmp_path: Path, batch: dict[str, torch.Tensor]) -> None:
    get_peft_model(tiny_model().bfloat16(), config(num_experts=2)).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tiny_model().bfloat16(), tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert logits(model, batch).dtype == torch.bfloat16


def test_generation_with_a_cache_equals_generation_without(batch: dict[str, torch.Tensor]) -> None:
    model = randomised(get_peft_model(tiny_model(), config(num_experts=3)))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached, uncached = (
        model.generate(input_ids=batch["input_ids"][:1], use_cache=use_cache, **options) for use_cache in (True, False)
    )
    assert torch.equal(cached, uncached)


def test_merging_is_refused_with_the_alternative() -> None:
    with pytest.raises(ValueError, match=r"cannot be merged.*PeftModel\.from_pretrained"):
        get_peft_model(tiny_model(), config()).merge_and_unload()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": [2, 2]}, "num_experts has 2 entries, but 3 of the model's 3 layers"),
        ({"num_experts": [2, 0, 1]}, "at least 1"),
        ({"num_experts": []}, "at least 1"),
        ({"num_experts": 1}, "1 in every layer"),
        ({"topk": 0}, "topk must be an integer of at least 1; got 0"),
        ({"aux_loss_coef": -0.1}, "aux_loss_coef must not be negative"),
        ({"layers_to_transform": [3]}, r"layers \[3\], but the model has layers 0..2"),
    ],
)
def test_bad_configurations_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(tiny_model(), config(**options))


@pytest.mark.parametrize("first", ["moe", "lora"])
def test_a_second_wrapping_is_refused(first: str, batch: dict[str, torch.Tensor]) -> None:
    earlier = config(num_experts=2) if first == "moe" else peft.LoraConfig(target_modules=["q_proj"])
    model = randomised(get_peft_model(tiny_model(), earlier))
    expected = logits(model, batch)
    with pytest.raises(ValueError, match=r"has adapters already: .* by model\.add_adapter\(name, config\)"):
        get_peft_model(model, config(num_experts=3))
    torch.testing.assert_close(logits(model, batch), expected)
