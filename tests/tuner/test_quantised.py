"""A base model that is quantised with bitsandbytes: experts are copies in the compute dtype, or of low rank.

What cannot be dequantised is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tuner.tiny import logits, moe_config, randomised, tiny_model

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_four_bits(dtype: torch.dtype, base_dir: Path, tmp_path: Path, batch: dict[str, torch.Tensor]) -> None:
    options = {"load_in_4bit": True, "bnb_4bit_compute_dtype": dtype}
    expected = logits(load(base_dir, **options), batch)
    model = get_peft_model(load(base_dir, **options), moe_config(num_experts=[3, 1, 2], aux_loss_coef=0.1))
    assert {p.dtype for name, p in model.named_parameters() if ".moe_" in name} == {dtype}
    randomised(model).train()
    model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if ".moe_" in name)
    model.save_pretrained(tmp_path)  # before an inference, after which bitsandbytes on a CPU saves other weights
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), expected)
    loaded = PeftModel.from_pretrained(load(base_dir, **options), tmp_path)
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_experts_are_the_dequantised_mlp(base_dir: Path, batch: dict[str, torch.Tensor]) -> None:
    options = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
    expected = logits(load(base_dir, **options), batch)
    model = get_peft_model(load(base_dir, **options), moe_config(num_experts=2))
    # Quantised kernels compute in bfloat16 here, the experts in float32.
    assert (logits(model, batch) - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("targets", ["mlp", "both"])
def test_low_rank_experts_keep_the_base_as_it_is(
    targets: str, base_dir: Path, tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    """As QLoRA's (arXiv 2305.14314): in 4 bits, whatever is trained beside it."""
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    expected = load(base_dir, **options)(**inputs).logits
    config = moe_config(num_experts=[3, 1, 2], expert_rank=4, targets=targets)
    model = get_peft_model(load(base_dir, **options), config).train()
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    quantised = {name: p.detach().clone() for name, p in model.named_parameters() if p.dtype == torch.uint8}
    assert len(quantised) == 3 * 7
    deltas = {name: p for name, p in model.named_parameters() if ".moe_" in name}
    assert {p.dtype for p in deltas.values()} == {torch.float32}
    before = {name: p.detach().clone() for name, p in deltas.items()}
    optimizer = torch.optim.AdamW(deltas.values(), lr=0.01)
    for _ in range(2):  # at the first step B is 0, so that nothing reaches A
        model(**inputs).loss.backward()
        optimizer.step()
    assert not [name for name, p in deltas.items() if p.equal(before[name])]
    assert all(model.get_parameter(name).equal(value) for name, value in quantised.items())
    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "adapter_model.safetensors") if ".moe_" not in name]
    loaded = PeftModel.from_pretrained(load(base_dir, **options), tmp_path)
    assert not logits(model, batch).allclose(expected, atol=1e-2)
    assert logits(loaded, batch).equal(logits(model, batch))
    with pytest.raises(ValueError, match="merge"):
        model.merge_and_unload()


def test_what_cannot_be_dequantised_is_refused(base_dir: Path, batch: dict[str, torch.Tensor]) -> None:
    base = load(base_dir, load_in_8bit=True)
    if base.device.type != "cpu":
        pytest.skip("8-bit weights can be dequantised on this device")
    with pytest.raises(ValueError, match="load the base model unquantised, or in 4 bits with bitsandbytes"):
        get_peft_model(base, moe_config(num_experts=2))


def test_weights_that_were_repacked_are_refused(base_dir: Path, batch: dict[str, torch.Tensor]) -> None:
    base = load(base_dir, load_in_4bit=True)
    logits(base, batch)
    if not getattr(base.model.layers[0].mlp.gate_proj.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("bitsandbytes does not repack weights on this device")
    with pytest.raises(ValueError, match=r"gate_proj is quantised \(Linear4bit.*before it runs"):
        get_peft_model(base, moe_config(num_experts=2))


def test_a_quantised_expert_without_tokens(base_dir: Path) -> None:
    model = get_peft_model(load(base_dir, load_in_4bit=True), moe_config(num_experts=2))
    layer = model.base_model.model.model.layers[0].mlp
    layer.base_layer.forward = None  # its kernels may not take an empty input
    assert layer._experts(layer._stacks("default")).run_base(torch.ones(0, 64)).shape == (0, 64)
