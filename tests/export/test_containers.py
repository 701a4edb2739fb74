"""What transformers' own classes compute of an export is what the adapter does, or the published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from export.making import TOKENS, MakeAdapter
from neuronmoe_plugins.export import checkpoint
from neuronmoe_plugins.export.export import export
from neuronmoe_plugins.export.request import ExportRequest
from tuner.tiny import GOLDEN

SLIDING = {"sliding_window": 4}
ROTARY = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
# What it becomes, of which family, how the base and how the adapter are configured.
EXACT = {
    "llama with a tied head": ("qwen2_moe", "llama", {"tie_word_embeddings": True}, {"num_experts": [3, 1, 3]}),
    "mistral with a window": ("qwen2_moe", "mistral", SLIDING, {"expert_rank": 4}),
    "qwen2 with a window": (
        "qwen2_moe",
        "qwen2",
        SLIDING | {"use_sliding_window": True, "max_window_layers": 0},
        {"topk": 1},
    ),
    "qwen3": ("qwen3_moe", "qwen3", {}, {"topk": 4}),
    "llama with scaled positions": ("ernie4_5_moe", "llama", {"rope_parameters": ROTARY}, {"num_experts": [4, 1, 2]}),
    "an extended mistral": (
        "ernie4_5_moe",
        "mistral",
        {"sliding_window": None, "head_dim": 12},
        {"num_experts": [1, 4, 3], "old_num_experts": [1, 3, 2], "expert_rank": [1, 2, 3]},
    ),
}


@pytest.mark.parametrize("case", EXACT)
def test_logits_and_greedy_text_are_the_adapters(
    case: str, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container, family, base, options = EXACT[case]
    model = make_adapter(family, base, **options)
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 20_000)
    exported = export(ExportRequest(str(tmp_path / "adapter"), tmp_path / "out"))
    assert (exported.model_type, exported.is_rounded) == (container, False)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert loaded.config.model_type == container
    with torch.no_grad():
        assert (loaded(input_ids=TOKENS).logits - model(input_ids=TOKENS).logits).abs().max() < 1e-5
    texts = [each.generate(input_ids=TOKENS, max_new_tokens=4, do_sample=False) for each in (loaded, model)]
    assert texts[0].equal(texts[1])


def test_a_published_adapter_gives_the_published_codes_logits(tmp_path: Path) -> None:
    request = ExportRequest(str(GOLDEN / "adapter"), tmp_path / "out", "ernie4_5_moe", str(GOLDEN / "base"))
    export(request)
    expected = np.load(GOLDEN / "expected.npz")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    mask = torch.from_numpy(expected["attention_mask"])
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(expected["input_ids"]), attention_mask=mask).logits
    torch.testing.assert_close(
        logits[mask.bool()], torch.from_numpy(expected["logits_eval"])[mask.bool()], rtol=0, atol=1e-5
    )
