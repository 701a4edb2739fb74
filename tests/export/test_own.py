"""`--as neuronmoe`: transformers loads, runs and saves it by itself, and refuses what is damaged in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from export.making import TOKENS, MakeAdapter
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.export import checkpoint
from neuronmoe_plugins.export.export import export
from neuronmoe_plugins.export.own import LEFT_OUT
from neuronmoe_plugins.export.request import ExportRequest

UNEVEN = {"num_experts": [4, 1, 2]}
# How the base and how the adapter are configured.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({"tie_word_embeddings": True, "mlp_bias": True}, {"expert_rank": [2, 1, 3]}),
    "mistral": ({"sliding_window": 4}, {"old_num_experts": [3, 1, 2]}),
    "qwen2": ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, {"topk": 1}),
    "qwen3": ({}, {"topk": 3}),
    "gemma3_text": ({}, {}),
    "phi3": ({}, {}),
    "phi": ({}, {}),
}


def exported(folder: Path, **options: Any) -> Path:
    export(ExportRequest(str(folder / "adapter"), folder / "out", "neuronmoe", **options))
    return folder / "out"


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_text_are_the_adapters(
    family: str, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, options = FAMILIES[family]
    model = make_adapter(family, base, **UNEVEN | options)
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 20_000)
    loaded = AutoModelForCausalLM.from_pretrained(exported(tmp_path)).eval()
    with torch.no_grad():
        difference = (loaded(input_ids=TOKENS).logits - model(input_ids=TOKENS).logits).abs().max()
    assert difference < 1e-5
    # With a cache, as each does by itself.
    texts = [each.generate(input_ids=TOKENS, max_new_tokens=4, do_sample=False) for each in (loaded, model)]
    assert texts[0].equal(texts[1])
    written = AutoConfig.from_pretrained(tmp_path / "out")
    assert (written.text_config.model_type, written.experts_per_layer) == (family, [4, 1, 2])


def test_it_is_saved_as_it_was_loaded(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    make_adapter("llama", {"tie_word_embeddings": True}, **UNEVEN)
    model = AutoModelForCausalLM.from_pretrained(exported(tmp_path))
    model.config.use_cache = False
    model.save_pretrained(tmp_path / "again")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
    assert "model.layers.0.mlp.experts.gate_up_proj" in first
    assert "model.layers.1.mlp.gate_proj.weight" in first
    # By its name and with its options, as `transformers serve` loads it.
    written = json.loads((tmp_path / "again/config.json").read_text())
    by_name: Any = getattr(transformers, written["architectures"][0])
    again = by_name.from_pretrained(tmp_path / "again", attn_implementation="eager", device_map="cpu", revision="main")
    assert again.config.text_config._attn_implementation == "eager"
    assert again.config.text_config.use_cache is False
    assert again.lm_head.weight is again.model.embed_tokens.weight
    with torch.no_grad():
        assert (again(input_ids=TOKENS).logits - model(input_ids=TOKENS).logits).abs().max() < 1e-5
    fresh = AutoModelForCausalLM.from_config(again.config)
    assert fresh(input_ids=TOKENS, labels=TOKENS).loss > 0


def test_its_card_and_configuration_say_what_it_needs(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    make_adapter(**UNEVEN)
    card = (exported(tmp_path) / "README.md").read_text(encoding="utf-8")
    assert "does not know the model type `neuronmoe`:\n\n```console\npip install neuronmoe-plugins\n```" in card
    assert "no\npackage but" not in card
    base, written = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("base", "out"))
    assert written["text_config"] | {key: base[key] for key in base.keys() - LEFT_OUT} == written["text_config"]


def test_weights_of_two_kinds_of_16_bits_are_not_rounded(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    make_adapter(**UNEVEN, adapter_dtype="float16")
    path = tmp_path / "base/model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    request = ExportRequest(str(tmp_path / "adapter"), tmp_path / "out", "neuronmoe", dtype="float32")
    assert not export(request).is_rounded


# What happens to config.json -> what is said after the name of the folder.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "newer": ({"format_version": 2}, "format_version is 2, and the installed neuronmoe-plugins reads 1: install the v"),
    "no version": ({"format_version": None}, "format_version is None, and "),
    "no base": ({"text_config": {}}, "text_config must be the base model's configuration, with its model_type"),
    "unknown base": ({"text_config": {"model_type": "lama"}}, "text_config: Unrecognized model identifier: lama"),
    "counts": (
        {"experts_per_layer": [4, 0, 2]},
        "experts_per_layer must be a list of counts, each at least 1; got ",
    ),
    "length": ({"experts_per_layer": [4, 2]}, "experts_per_layer has 2 counts, and the base model of text_config 3 la"),
    "topk": ({"num_experts_per_tok": 0}, "num_experts_per_tok must be a number of at least 1; got 0"),
}


def test_wrong_configurations_are_refused(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    make_adapter(**UNEVEN)
    path = exported(tmp_path) / "config.json"
    written = path.read_text()
    for change, message in WRONG.values():
        path.write_text(json.dumps(json.loads(written) | change))
        with pytest.raises(UserError) as caught:
            AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert str(caught.value).startswith(f"config.json of {tmp_path / 'out'}: {message}")
        assert "\n" not in str(caught.value)


def lost(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if ".experts." not in name}


def added(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"model.layers.1.mlp.gate.weight": torch.ones(2, 16)}


EDITS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "lost": (lost, "its weights lack model.layers.0.mlp.experts.down_proj, model.layers.0.mlp.experts.gate_up_proj, "),
    "added": (added, "its weights have, beside those of their model, model.layers.1.mlp.gate.weight; export it again"),
}


def test_nothing_is_loaded_at_random_or_left_out(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    make_adapter(**UNEVEN)
    path = exported(tmp_path) / "model.safetensors"
    written = load_file(path)
    for edit, message in EDITS.values():
        save_file(edit(written), path, metadata={"format": "pt"})
        with pytest.raises(UserError) as caught:
            AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert f"{tmp_path / 'out'} is damaged: {message}" in str(caught.value)
