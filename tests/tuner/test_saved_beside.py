"""What an adapter saves beside its layers: files without it, and names that cannot be saved, are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tuner.lifecycles import BESIDE, HEAD, ROWS, WEIGHTS, base, changed, moe, trainable

DAMAGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda t: t.pop(f"base_model.model.{HEAD}"), r"it lacks lm_head\.weight\."),
    "rows missing": (lambda t: t.pop(f"base_model.model.{ROWS}"), r"it lacks .*trainable_tokens_delta\."),
    "smaller": (
        lambda t: t.update({f"base_model.model.{HEAD}": torch.ones(60, 16)}),
        r"in a wrong shape, lm_head\.weight \(60, 16\) instead of \(61, 16\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_without_what_is_saved_is_refused(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    get_peft_model(base(), moe(**BESIDE["head and tokens"][0])).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / WEIGHTS)
    for load in (lambda: PeftModel.from_pretrained(base(), tmp_path), lambda: base().load_adapter(str(tmp_path))):
        with pytest.raises(ValueError, match=message):
            load()


def test_a_configuration_without_what_was_saved_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = changed(get_peft_model(base(), moe(modules_to_save=["lm_head"])))
    model.save_pretrained(tmp_path)
    PeftModel.from_pretrained(base(), tmp_path)
    assert not caplog.records
    PeftModel.from_pretrained(base(), tmp_path, config=moe(train_only_router=True), is_trainable=True)
    assert "has other weights than the base model, which they replace: lm_head.weight; if it was" in caplog.text


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a typing error": ({"modules_to_save": ["lm_haed"]}, "^modules_to_save names lm_haed, which LlamaForCausalLM does"),
    "a text": ({"modules_to_save": "lm_head"}, "^modules_to_save must be a list of names of modules; got 'lm_head'"),
    "a mixture": (
        {"modules_to_save": ["mlp"]},
        r"^modules_to_save names mlp, but model\.layers\.0\.mlp becomes a mixture, .*: remove it",
    ),
    "a part of one": ({"modules_to_save": ["up_proj"]}, r"names up_proj, but model\.layers\.0\.mlp becomes"),
    "what holds one": ({"modules_to_save": ["layers.2"]}, r"names layers\.2, but model\.layers\.2\.mlp becomes"),
    "a token that is not there": (
        {"trainable_token_indices": [61]},
        "has token 61, but model.embed_tokens has 61 rows",
    ),
    "a token twice": ({"trainable_token_indices": [6, 6]}, "trainable_token_indices has an index twice"),
    "no tokens": (
        {"trainable_token_indices": []},
        r"trainable_token_indices must be a list of tokens' indices, .* \[\]",
    ),
    "tokens by name": ({"trainable_token_indices": ["a"]}, r"must be a list of tokens' indices, .*; got \['a'\]"),
    "an unknown module": ({"trainable_token_indices": {"wte": [1]}}, "^trainable_token_indices names wte, which"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_saved_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(base(), moe(**options))


def test_a_dense_layer_may_be_trained_whole() -> None:
    model = get_peft_model(base(), moe(modules_to_save=["layers.1.mlp"]))
    assert any(".layers.1.mlp.modules_to_save.default.up_proj" in name for name in trainable(model))


@pytest.mark.parametrize(
    "beside", [{}, {"trainable_token_indices": [5, 60]}, {"modules_to_save": ["embed_tokens"]}], ids=str
)
def test_weights_that_are_tied_again_are_the_same(beside: dict[str, Any]) -> None:
    """As lm-eval does with every model that it has loaded."""
    model = changed(get_peft_model(base(tied=True), moe(**beside))).eval()
    text = torch.tensor([[1, 5, 60, 7]])
    with torch.no_grad():
        expected = model(text).logits
        model.tie_weights()
        assert model(text).logits.equal(expected)
