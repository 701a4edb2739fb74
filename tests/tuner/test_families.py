"""What holds for a mixture of every built-in family of MLPs, in float32 and bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from neuronmoe_plugins.tuner import MoeLayer
from tuner.tiny import FAMILIES, logits, moe_config, randomised, tiny_model

EXPERTS = [4, 1, 2]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def mixture(family: str, dtype: torch.dtype, **options: Any) -> PeftModel:
    torch.manual_seed(5)
    return get_peft_model(tiny_model(family).to(dtype), moe_config(num_experts=EXPERTS, **options))


def step(model: PeftModel, batch: dict[str, torch.Tensor]) -> None:
    """One step of training, large enough to show in bfloat16."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_fresh_trained_saved_and_disabled(
    family: str, dtype: torch.dtype, tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    base = logits(tiny_model(family).to(dtype), batch)
    model = mixture(family, dtype, aux_loss_coef=0.1)
    # Weights that are rounded to bfloat16 do not sum to 1 exactly.
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.15}[dtype]
    torch.testing.assert_close(logits(model, batch), base, atol=tolerance, rtol=0)

    randomised(model)  # equal experts give the router no gradient
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, batch)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".moe_" in name}
    trained = logits(model, batch)
    assert (trained - base).abs().max() > 0.05
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), base)

    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(before[name].numel() for name in changed)
    for options in ({}, {"adapter_name": "greek"}, {"low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(tiny_model(family).to(dtype), tmp_path, **options)
        assert torch.equal(logits(loaded, batch), trained), options
        assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert torch.equal(logits(model.unload(), batch), base)


def test_generation_with_a_cache_equals_generation_without(family: str, batch: dict[str, torch.Tensor]) -> None:
    model = randomised(mixture(family, torch.float32))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached, uncached = (
        model.generate(input_ids=batch["input_ids"][:1], use_cache=use_cache, **options) for use_cache in (True, False)
    )
    assert torch.equal(cached, uncached)


def test_every_parameter_of_the_mlp_is_copied(family: str) -> None:
    """Biases included: an expert has as many parameters as the base MLP."""
    model = tiny_model(family, attention_bias=False) if family == "phi3" else tiny_model(family)
    model = get_peft_model(model, moe_config(num_experts=3))
    for layer in (module for module in model.modules() if isinstance(module, MoeLayer)):
        base = sum(p.numel() for p in layer.base_layer.parameters())
        copies = sum(
            p.numel() for name, p in layer.named_parameters() if name.startswith("moe_") and "router" not in name
        )
        assert copies == 2 * base
        for name in layer.weight_names:
            first, second = getattr(layer, f"moe_{name}")["default"]
            assert torch.equal(first, second)


@pytest.mark.parametrize("biased", ["llama", "gpt_neox", "phi"])
def test_biases_take_part(biased: str, batch: dict[str, torch.Tensor]) -> None:
    model = tiny_model(biased, mlp_bias=True) if biased == "llama" else tiny_model(biased)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    expected = logits(model, batch)
    mixture = get_peft_model(model, moe_config(num_experts=3))
    torch.testing.assert_close(logits(mixture, batch), expected, atol=1e-4, rtol=0)
    biases = [p for name, p in mixture.named_parameters() if ".moe_" in name and "_bias" in name]
    assert biases
    with torch.no_grad():
        for bias in biases:
            bias.zero_()
    assert (logits(mixture, batch) - expected).abs().max() > 0.1


def test_status(family: str) -> None:
    model = mixture(family, torch.float32)
    status = model.get_model_status()
    assert (status.enabled, status.active_adapters, status.available_adapters) == (True, ["default"], ["default"])
    assert (status.num_adapter_layers, status.requires_grad) == (2, {"default": True})
    assert status.trainable_params == sum(p.numel() for name, p in model.named_parameters() if ".moe_" in name)
    assert [layer.module_type for layer in model.get_layer_status()] == ["moe.MoeLayer"] * 2


def test_print_trainable_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    mixture("llama", torch.float32, train_only_router=True).print_trainable_parameters()
    assert capsys.readouterr().out.startswith("trainable params: 96 || all params: ")
