"""Rows of new tokens that an adapter has trained: an export has them in its embedding and head, a graft moves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.export.export import export
from neuronmoe_plugins.export.graft import graft
from neuronmoe_plugins.export.request import ExportRequest, GraftRequest
from neuronmoe_plugins.host_versions import trains_rows_of_heads
from tuner.tiny import moe_config, randomised, tiny_model

ROWS = [5, 50, 51, 52]
TOKENS = torch.tensor([[5, 50, 7, 52, 51, 9]])
WEIGHTS = "adapter_model.safetensors"
DELTA = "base_model.model.{}.token_adapter.trainable_tokens_delta"


def save_base(folder: Path, tied: bool, tokens: int = 3, seed: int = 0) -> Any:
    """A tiny model whose last tokens are new ones, in a folder."""
    model: Any = tiny_model(seed=seed, tie_word_embeddings=tied)
    modules = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    if tokens:
        told = {"first": 53 - tokens, "tokens": tokens, "modules": modules, "hash": "1a2b3c4d"}
        model.config.neuronmoe_vocabulary = told
    model.save_pretrained(folder)
    model.name_or_path = str(folder)
    return model


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def is_tied(request: pytest.FixtureRequest) -> bool:
    if not request.param and not trains_rows_of_heads():
        pytest.skip("peft 0.17 cannot train rows of a head of its own")
    return bool(request.param)


@pytest.fixture
def adapted(tmp_path: Path, is_tied: bool) -> PeftModel:
    """The adapter on its base, which are in folders of these names."""
    base = save_base(tmp_path / "base", is_tied)
    rows: Any = ROWS if is_tied else {"embed_tokens": ROWS, "lm_head": ROWS}
    model = randomised(get_peft_model(base, moe_config(num_experts=[3, 1, 2], trainable_token_indices=rows)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(tmp_path / "adapter")
    return model.eval()


def test_an_export_has_them(adapted: PeftModel, tmp_path: Path) -> None:
    made = export(ExportRequest(str(tmp_path / "adapter"), tmp_path / "out", "neuronmoe"))
    assert made.comparison is not None and "On 64 random and new tokens its logits" in str(made.comparison)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, adapted(TOKENS).logits, rtol=1e-4, atol=1e-4)
    base = load_file(tmp_path / "base/model.safetensors")
    others = [row for row in range(61) if row not in ROWS]
    written = load_file(tmp_path / "out/model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert (name in written) is (name in base)
        assert name not in base or written[name][others].equal(base[name][others])


def test_a_graft_adds_the_difference_of_the_models(adapted: PeftModel, is_tied: bool, tmp_path: Path) -> None:
    chat, base = save_base(tmp_path / "chat", is_tied, seed=5), load_file(tmp_path / "base/model.safetensors")
    graft(GraftRequest(adapter=f"{tmp_path}/adapter", target=f"{tmp_path}/chat", output=tmp_path / "out"))
    before, after = (load_file(tmp_path / name / WEIGHTS) for name in ("adapter", "out"))
    for name in ["model.embed_tokens", *([] if is_tied else ["lm_head"])]:
        difference = chat.get_submodule(name).weight[ROWS].double() - base[f"{name}.weight"][ROWS]
        delta = DELTA.format(name)
        torch.testing.assert_close(after[delta].double() - before[delta], difference, rtol=0, atol=1e-6)
    grafted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "chat"), tmp_path / "out")
    with torch.no_grad():
        assert not grafted(TOKENS).logits.equal(adapted(TOKENS).logits)


@pytest.mark.parametrize("is_tied", [True], indirect=True)
def test_models_with_other_new_tokens_are_refused(adapted: PeftModel, tmp_path: Path) -> None:
    adapter, one, other = str(tmp_path / "adapter"), str(tmp_path / "base"), str(tmp_path / "other")
    for tokens, found in ((0, "none"), (2, "2 from 51 on (1a2b3c4d)")):
        save_base(tmp_path / "other", tied=True, tokens=tokens)
        for container in ("neuronmoe", "gguf"):
            with pytest.raises(UserError) as refused:
                export(ExportRequest(adapter, tmp_path / "out", container, model=other))
            assert str(refused.value) == (
                f"ADAPTER {adapter} is one of another model, whose new tokens are 3 from 50 on (1a2b3c4d), but those "
                f"of {other} are {found}: name the adapter's base"
            )
        with pytest.raises(UserError) as refused:
            graft(GraftRequest(adapter=adapter, target=other, output=tmp_path / "out"))
        assert str(refused.value) == (
            f"--to {other} has other tokens than --from {one}: its new ones are {found} instead of 3 from 50 on "
            "(1a2b3c4d); extend the one by `neuronmoe vocabulary` as the other was"
        )
    assert not (tmp_path / "out").exists()
