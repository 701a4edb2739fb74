"""A model, adapter or tokenizer that is not whole is refused, since what is missing would be made up."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.loading import load_model, load_tokenizer, tokenize
from tuner.tiny import GOLDEN, moe_config


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def change_weights(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_missing_weights(copy: Path) -> None:
    change_weights(copy, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(UserError, match=r"lacks 1 weights of its model, among them model\.layers\.1\.mlp\.up_proj"):
        load_model(str(copy), "float32", "cpu")


def test_head_has_no_effect_on_activations_but_on_losses(copy: Path) -> None:
    change_weights(copy, lambda weights: weights.pop("lm_head.weight"))
    load_model(str(copy), "float32", "cpu", needs_head=False)
    with pytest.raises(UserError, match=r"lacks 1 weights of its model, among them lm_head\.weight"):
        load_model(str(copy), "float32", "cpu")


def shorten(weights: dict[str, Any]) -> None:
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"][:5].clone()


def test_weights_of_another_shape(copy: Path) -> None:
    change_weights(copy, shorten)
    with pytest.raises(UserError, match=r"--model .* cannot be loaded: RuntimeError") as caught:
        load_model(str(copy), "float32", "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_file(copy: Path, name: str) -> None:
    (copy / name).write_text("{}")
    with pytest.raises(UserError, match=r"--model .* cannot be loaded"):
        load_model(str(copy), "float32", "cpu")


def test_damaged_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"--model .* cannot be loaded"):
        load_tokenizer(str(copy))


def test_folder_without_a_tokenizer(copy: Path) -> None:
    for path in copy.glob("*token*"):
        path.unlink()
    with pytest.raises(UserError, match=r"has no tokenizer_config\.json; put the model's tokenizer files there$"):
        load_tokenizer(str(copy))


def test_sentences_cut_to_nothing_but_the_first_token(tiny_model_dir: Path) -> None:
    with pytest.raises(UserError, match=r"all sentences the same tokens, \[1\]; .* pass more --max-tokens"):
        tokenize(load_tokenizer(str(tiny_model_dir)), ["One sentence.", "And another."], 1)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (2, "lacks 4 weights of its model, among them .*layers.2"),
        (6, "of another model, which has a place for .*layers.4"),
    ],
)
def test_lora_of_another_depth(tiny_model_dir: Path, tmp_path: Path, layers: int, message: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, num_hidden_layers=layers)
    lora = peft.get_peft_model(base, peft.LoraConfig(target_modules=["up_proj"]))
    lora.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=message):
        load_model(str(tiny_model_dir), "float32", "cpu", str(tmp_path / "adapter"))


def test_unknown_kind_of_adapter(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "MAGIC"}')
    with pytest.raises(UserError, match=r"--adapter .* cannot be loaded"):
        load_model(str(tiny_model_dir), "float32", "cpu", str(tmp_path))


def test_published_adapter_is_whole(caplog: pytest.LogCaptureFixture) -> None:
    model = load_model(str(GOLDEN / "base"), "float32", "cpu", str(GOLDEN / "adapter"))
    assert [record.message for record in caplog.records if "published NeuronMoE format" in record.message]
    assert any("moe_gate_proj" in name for name, _ in model.named_parameters())


def test_adapter_of_another_model_of_the_same_shape(copy: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    peft.get_peft_model(base, moe_config(num_experts=2)).save_pretrained(tmp_path / "adapter")
    load_model(str(tiny_model_dir), "bfloat16", "cpu", str(tmp_path / "adapter"))
    change_weights(copy, lambda weights: weights["model.layers.3.mlp.up_proj.weight"].mul_(1.02))
    line = f"adapter cannot be loaded: the adapter 'default' is one of {tiny_model_dir}, but {copy} has other weights"
    with pytest.raises(UserError, match=line):
        load_model(str(copy), "float32", "cpu", str(tmp_path / "adapter"))
