"""What vLLM computes of an export is what the adapter does in PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from export.making import MakeAdapter
from neuronmoe_plugins.export.export import export
from neuronmoe_plugins.export.request import ExportRequest
from serving.engines import SIZES, expected, generate, in_fork

pytestmark = pytest.mark.serving

# Of different lengths, in one batch; the longest is longer than the windows.
PROMPTS = [
    torch.randint(3, 61, (length,), generator=torch.Generator().manual_seed(length)).tolist() for length in (40, 5, 17)
]
TOLERANCE = 1e-4
TRANSFORMERS = {"model_impl": "transformers"}
# What it becomes, the base's family and configuration, the adapter's, and how it is served.
SERVED: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "llama": ("qwen2_moe", "llama", {"tie_word_embeddings": True}, {"num_experts": [3, 1, 3]}, {}),
    "low rank": ("qwen2_moe", "llama", {}, {"num_experts": 3, "expert_rank": 4}, {}),
    "window": ("qwen2_moe", "mistral", {"sliding_window": 16}, {"num_experts": 3}, {}),
    "top-k of 1": ("qwen2_moe", "qwen2", {}, {"topk": 1}, {}),
    "qwen3": ("qwen3_moe", "qwen3", {}, {"num_experts": [4, 4, 1]}, {}),
    "uneven llama": ("ernie4_5_moe", "llama", {}, {"num_experts": [4, 1, 2]}, TRANSFORMERS),
    "uneven mistral": ("ernie4_5_moe", "mistral", {"sliding_window": None}, {"num_experts": [1, 4, 3]}, TRANSFORMERS),
    "llama by transformers": ("qwen2_moe", "llama", {}, {"num_experts": [3, 1, 3]}, TRANSFORMERS),
}


@pytest.mark.parametrize("case", SERVED)
def test_likelihoods_and_greedy_text_are_the_adapters(case: str, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    container, family, base, adapter, options = SERVED[case]
    model = make_adapter(family, SIZES | base, **adapter)
    exported = export(ExportRequest(str(tmp_path / "adapter"), tmp_path / "out"))
    assert exported.model_type == container
    answers = in_fork(generate, tmp_path / "out", PROMPTS, 12, **options)
    for (found, text), (wanted, greedy) in zip(answers, expected(model, PROMPTS, 12), strict=True):
        assert (torch.tensor(found) - wanted).abs().max() < TOLERANCE
        assert text == greedy
