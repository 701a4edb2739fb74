"""`additional_target`: modules that are trained whole and saved with the mixture, from stage 1 to chat."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig
from peft.utils.other import TrainableTokensWrapper
from safetensors.torch import load_file
from torch import nn
from training_runs import refusal, save_adapter, train

ENDS = {"head": "base_model.model.lm_head.weight", "embedding": "base_model.model.model.embed_tokens.weight"}
BOTH = {"additional_target": "embed_tokens,lm_head"}
WEIGHTS = "adapter_model.safetensors"


def test_it_is_trained_saved_and_resumed(moe_args: dict[str, Any], tiny_model_dir: Path, tmp_path: Path) -> None:
    args = moe_args | {"additional_target": "embed_tokens,lm_head", "max_steps": 2}
    train(args, tmp_path / "whole", save_strategy="steps", save_steps=1)
    checkpoint = tmp_path / "whole" / "checkpoint-1"
    train(args, tmp_path / "resumed", resume_from_checkpoint=str(checkpoint))
    whole, resumed, half = (
        load_file(path / WEIGHTS) for path in (tmp_path / "whole", tmp_path / "resumed", checkpoint)
    )
    base = load_file(tiny_model_dir / "model.safetensors")
    for name in ENDS.values():
        assert not half[name].equal(base[name.removeprefix("base_model.model.")])
        assert not whole[name].equal(half[name])
    assert resumed.keys() == whole.keys()
    assert all(tensor.equal(resumed[name]) for name, tensor in whole.items())
    assert PeftConfig.from_pretrained(tmp_path / "whole").modules_to_save == ["embed_tokens", "lm_head"]


def test_chat_adds_modules_to_an_adapter_and_warns_of_the_others(
    moe_args: dict[str, Any], tiny_model_dir: Path, tmp_path: Path, warnings: list[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(tiny_model_dir) for kind in (AutoModelForCausalLM, AutoTokenizer))
    with torch.no_grad():
        for weight in (model.lm_head.weight, model.model.embed_tokens.weight):
            weight[tokenizer.eos_token_id] = 0
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "base", num_experts=[3, 1, 1, 2], modules_to_save=["norm"])
    before = load_file(tmp_path / "adapter" / WEIGHTS)
    chat = {"stage": "sft", "template": "empty", "dataset": "el_chat", "adapter_name_or_path": adapter}
    chat |= {"model_name_or_path": str(tmp_path / "base"), "additional_target": "norm,embed_tokens"}
    train(moe_args, tmp_path / "chat", max_steps=1, learning_rate=1e-4, ada_moe_num_experts_list=None, **chat)
    after = load_file(tmp_path / "chat" / WEIGHTS)
    added = ENDS["embedding"]
    assert after.keys() == before.keys() | {added}
    before[added] = model.model.embed_tokens.weight.detach()
    for name in (added, "base_model.model.model.norm.weight"):
        assert not after[name].equal(before[name])
        torch.testing.assert_close(after[name], before[name], atol=2e-4, rtol=0)
    assert [line.partition(", whose row in ")[2].partition(" was ")[0] for line in warnings] == ["lm_head"]


def test_what_an_adapter_has_saved_stays(moe_args: dict[str, Any], tiny_model_dir: Path, tmp_path: Path) -> None:
    counts = [3, 1, 1, 2]
    adapter = save_adapter(tmp_path / "a", tiny_model_dir, num_experts=counts, modules_to_save=["lm_head", "norm"])
    used = moe_args | {"adapter_name_or_path": adapter}
    assert refusal(used | BOTH).startswith(
        f"additional_target is embed_tokens,lm_head, but the adapter in {adapter} has saved norm, too: remove the key"
    )
    assert refusal(used | BOTH | {"train_only_router": True}).startswith(
        "additional_target has no effect with train_only_router"
    )
    inference = {"do_train": False, "do_eval": True, "eval_dataset": "en_odd", "dataset": None}
    assert re.search("no effect without training: .*additional_target", refusal(used | BOTH | inference))


class Ends(nn.Module):
    """A model's embedding and head, of trained rows but for those of the last tokens."""

    def __init__(self, num_tokens: int, unused: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed_tokens, self.lm_head = nn.Embedding(num_tokens, 8), nn.Linear(8, num_tokens, bias=False)
        with torch.no_grad():
            for weight in (self.embed_tokens.weight, self.lm_head.weight):
                weight.copy_(torch.randn(weight.shape, generator=generator))
                weight[-unused:] = torch.ones(8) + 0.01 * torch.randn(unused, 8, generator=generator)
        self.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from neuronmoe_plugins.integrations.llamafactory import end_tokens

    lines: list[str] = []
    monkeypatch.setattr(end_tokens.logger, "warning_rank0", lines.append, raising=False)
    return lines


def test_end_tokens_that_the_base_never_saw(tiny_model_dir: Path, warnings: list[str]) -> None:
    from transformers import AutoTokenizer

    from neuronmoe_plugins.errors import UserError
    from neuronmoe_plugins.integrations.llamafactory.end_tokens import warn_of_end_tokens

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model, size = Ends(len(tokenizer) + 8, unused=8), len(tokenizer)
    warn_of_end_tokens(model, tokenizer, "empty")
    assert warnings == []
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})  # as the host lets a template's take the model's place
    warn_of_end_tokens(model, tokenizer, "qwen")
    assert warnings == [
        "template: qwen ends answers with <|im_end|>, whose row in embed_tokens and lm_head was never trained: the "
        "model will not learn to stop; train it by additional_target: embed_tokens,lm_head"
    ]
    with torch.no_grad():
        model.embed_tokens.weight[size] = torch.randn(8, generator=torch.Generator().manual_seed(1))
        model.lm_head.weight[size] *= 1e-3
    warn_of_end_tokens(model, tokenizer, "qwen")
    assert "whose row in lm_head was" in warnings.pop()
    model.lm_head.requires_grad_(True)
    warn_of_end_tokens(model, tokenizer, "qwen")
    assert len(warnings) == 1
    with pytest.raises(UserError, match=r"^template: the model has no row for <\|im_end\|>, which ends its answers"):
        warn_of_end_tokens(Ends(size, unused=8), tokenizer, "qwen")
    # Of an embedding that trains single rows, those are no matter, and others cannot be trained by additional_target.
    rows = Ends(size + 8, unused=8)
    rows.lm_head = rows.embed_tokens = TrainableTokensWrapper(rows.embed_tokens, "default", [3])
    warnings.clear()
    warn_of_end_tokens(rows, tokenizer, "qwen")
    assert warnings.pop().endswith("train it by naming it to `neuronmoe vocabulary --train-also '<|im_end|>'`")
    rows.lm_head = rows.embed_tokens = TrainableTokensWrapper(rows.embed_tokens.original_module, "default", [3, size])
    warn_of_end_tokens(rows, tokenizer, "qwen")
    assert warnings == []
