"""An adapter knows the model that it was made on from others of the same shape, in any dtype."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.feed_forward import find_feed_forwards
from neuronmoe_plugins.tuner.fingerprint import OtherBaseError, fingerprint, refused_on_other_base
from tuner.tiny import FAMILIES, moe_config, tiny_model


def other_model() -> torch.nn.Module:
    """The same model after a little more training: each weight of one matrix is 2 % larger."""
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[2].self_attn.q_proj.weight.mul_(1.02)
    return model


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    get_peft_model(tiny_model(), moe_config(num_experts=[2, 1, 1])).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_model_in_any_dtype(adapter: Path, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherBaseError)
        model = PeftModel.from_pretrained(tiny_model().to(dtype), adapter)
        model.load_adapter(str(adapter), "second")


@pytest.mark.parametrize("made_in", [torch.bfloat16, torch.float16])
def test_an_adapter_made_on_a_rounded_model(made_in: torch.dtype, tmp_path: Path) -> None:
    get_peft_model(tiny_model().to(made_in), moe_config(num_experts=2)).save_pretrained(tmp_path)
    with refused_on_other_base():
        PeftModel.from_pretrained(tiny_model(), tmp_path)


def test_another_model_is_said_to_be_that(adapter: Path) -> None:
    with pytest.warns(OtherBaseError, match=r"^the adapter 'default' is one of .*layers\.2\.self_attn\.q_proj\.weight"):
        PeftModel.from_pretrained(other_model(), adapter)
    second = PeftModel.from_pretrained(tiny_model(), adapter)
    with torch.no_grad():
        second.base_model.model.model.layers[0].mlp.base_layer.down_proj.weight.mul_(1.02)
    with pytest.warns(OtherBaseError, match=r"the adapter 'second' .*layers\.0\.mlp\.down_proj\.weight"):
        second.load_adapter(str(adapter), "second")
    with refused_on_other_base(), pytest.raises(UserError, match="one of another model, but the model has other"):
        PeftModel.from_pretrained(other_model(), adapter)


def with_new_tokens(rows: int) -> torch.nn.Module:
    """The same decoder layers with two more tokens, and some rows for padding."""
    model = tiny_model()
    model.resize_token_embeddings(rows)
    model.config.neuronmoe_vocabulary = {"first": 61, "tokens": 2, "modules": [], "hash": "1a2b3c4d"}
    return model


def test_a_model_with_other_new_tokens_is_refused(adapter: Path, tmp_path: Path) -> None:
    """No other weight tells it; rows for padding do not matter, which lm-eval cuts off."""
    of_extended, known = tmp_path / "of_extended", "2 from 61 on (1a2b3c4d)"
    config = moe_config(num_experts=2, trainable_token_indices=[61])
    get_peft_model(with_new_tokens(64), config).save_pretrained(of_extended)
    PeftModel.from_pretrained(with_new_tokens(63), of_extended)
    for path, model, names in (
        (adapter, with_new_tokens(64), ("none", known)),
        (of_extended, tiny_model(), (known, "none")),
    ):
        with pytest.raises(UserError) as refused:
            PeftModel.from_pretrained(model, path)
        assert str(refused.value) == (
            "it is one of another model, whose new tokens are {}, but those of the model are {}: name the adapter's "
            "base"
        ).format(*names)


def test_transformers_own_loading_warns_too(adapter: Path) -> None:
    with pytest.warns(OtherBaseError):
        other_model().load_adapter(str(adapter))


def test_the_model_that_was_trained_last_counts(adapter: Path, tmp_path: Path) -> None:
    config = moe_config(num_experts=2)
    for model in (tiny_model(), other_model()):
        get_peft_model(model, config).save_pretrained(tmp_path)
    with refused_on_other_base():
        PeftModel.from_pretrained(other_model(), tmp_path)


def test_adapters_without_one_load_as_ever(adapter: Path) -> None:
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    assert len(config.pop("base_fingerprint")) == 3 * 7
    file.write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherBaseError)
        PeftModel.from_pretrained(other_model(), adapter)


def test_a_base_without_values_is_not_compared(adapter: Path) -> None:
    saved = peft.PeftConfig.from_pretrained(adapter).base_fingerprint
    with torch.device("meta"):
        empty = tiny_model()
    model = get_peft_model(empty, peft.PeftConfig.from_pretrained(adapter), low_cpu_mem_usage=True)
    assert model.peft_config["default"].base_fingerprint == saved, "what is not known stays as it was said"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_one(family: str) -> None:
    model: Any = tiny_model(family)
    before = fingerprint(model, find_feed_forwards(model))
    assert {name.split(".")[2] for name in before} == {"0", "1", "2"}
    assert len(before) >= 3 * 4
    model = get_peft_model(model, moe_config(num_experts=2)).get_base_model()
    assert fingerprint(model, find_feed_forwards(model)) == before, "adapters around the layers change nothing"
