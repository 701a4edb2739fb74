"""Models that are fed from files have one layer's weights at a time, and compute what they do with all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from export.making import MakeAdapter
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.export import export as exporting
from neuronmoe_plugins.export.request import ExportRequest
from neuronmoe_plugins.export.sources import TensorFiles
from neuronmoe_plugins.export.streaming import empty_model, reader, stream
from tuner.tiny import tiny_model


def test_one_layer_is_there_at_a_time(tmp_path: Path) -> None:
    whole = tiny_model("llama", tie_word_embeddings=True)
    whole.save_pretrained(tmp_path)
    model = empty_model(whole.config)
    read = reader(model, TensorFiles([tmp_path / "model.safetensors"]), "the checkpoint")
    most = []

    def counting(name: str) -> torch.Tensor | None:
        there = [name for name, parameter in model.named_parameters() if not parameter.is_meta]
        most.append({".".join(name.split(".")[:3]) for name in [*there, name]})
        return read(name)

    stream(model, [f"model.layers.{layer}" for layer in range(3)], counting, "cpu")
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad():
        assert model(input_ids=tokens).logits.equal(whole(input_ids=tokens).logits)
    assert {frozenset(each) for each in most} == {
        *(frozenset({f"model.layers.{layer}"}) for layer in range(3)),
        *map(frozenset, [{"model.embed_tokens.weight"}, {"model.norm.weight"}, {"lm_head.weight"}]),
    }
    assert all(parameter.is_meta for parameter in model.parameters())


def test_what_a_checkpoint_lacks_is_named(tmp_path: Path) -> None:
    model = empty_model(tiny_model().config)
    save_file({"model.norm.weight": torch.ones(16)}, tmp_path / "model.safetensors")
    read = reader(model, TensorFiles([tmp_path / "model.safetensors"]), "the checkpoint")
    assert read("model.norm.weight").equal(torch.ones(16))
    with pytest.raises(
        UserError, match=r"^the checkpoint lacks lm_head\.weight, which the installed transformers has i"
    ):
        read("lm_head.weight")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_compared_with_the_adapter_as_peft_loads_it(
    dtype: torch.dtype, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    model = make_adapter(num_experts=[3, 1, 2], expert_rank=2)
    model.to(dtype).save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens = torch.randint(61, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = adapted(input_ids=tokens).logits
    result = exporting.export(ExportRequest(str(tmp_path / "adapter"), tmp_path / "out", "neuronmoe")).comparison
    assert result.largest == pytest.approx(expected.abs().max().item(), abs=1e-5)
    assert result.difference < 1e-5
