"""What vLLM computes of an export is what the adapter does in PEFT."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

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
OWN = "neuronmoe"
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
    "own llama": ("neuronmoe", "llama", {"tie_word_embeddings": True}, {"num_experts": [4, 1, 2]}, {}),
    "own mistral": ("neuronmoe", "mistral", {"sliding_window": 16}, {"num_experts": [1, 2, 4], "topk": 3}, {}),
    "own qwen2": ("neuronmoe", "qwen2", {}, {"num_experts": [2, 3, 1], "topk": 1}, {}),
    "own qwen3": ("neuronmoe", "qwen3", {}, {"num_experts": [2, 1, 3]}, {}),
    "llama by transformers": ("qwen2_moe", "llama", {}, {"num_experts": [3, 1, 3]}, TRANSFORMERS),
}


@pytest.mark.parametrize("case", SERVED)
def test_likelihoods_and_greedy_text_are_the_adapters(case: str, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    container, family, base, adapter, options = SERVED[case]
    model = make_adapter(family, SIZES | base, **adapter)
    exported = export(ExportRequest(str(tmp_path / "adapter"), tmp_path / "out", "auto" if container != OWN else OWN))
    assert exported.model_type == container
    answers = in_fork(generate, tmp_path / "out", PROMPTS, 12, **options)
    for (found, text), (wanted, greedy) in zip(answers, expected(model, PROMPTS, 12), strict=True):
        assert (torch.tensor(found) - wanted).abs().max() < TOLERANCE
        assert text == greedy


Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.2.mlp"
# What happens to a checkpoint's tensors -> what is said.
CHANGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "no router": (
        lambda own: own.pop(f"{LAYER}.gate.weight"),
        f"out lacks 1 of its tensors, among them {LAYER}.gate.w",
    ),
    "no experts": (lambda own: own.pop(f"{LAYER}.experts.down_proj"), f"among them {LAYER}.experts.down_proj"),
    "a bias": (
        lambda own: own.update({f"{LAYER}.gate.bias": torch.zeros(2)}),
        f"out: its tensor {LAYER}.gate.bias is (2,) instead of nothing",
    ),
    "fewer experts": (
        lambda own: own.update({f"{LAYER}.experts.down_proj": own[f"{LAYER}.experts.down_proj"][:1]}),
        f"out: its tensor {LAYER}.experts.down_proj is (1, 64, 24) instead of (2, 64, 24)",
    ),
}


@pytest.mark.parametrize("why", CHANGES)
def test_a_checkpoint_with_other_tensors_is_not_served(why: str, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    change, message = CHANGES[why]
    make_adapter("llama", SIZES, num_experts=[4, 1, 2])
    export(ExportRequest(str(tmp_path / "adapter"), tmp_path / "out", OWN))
    file = tmp_path / "out/model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=re.escape(message)):
        in_fork(generate, tmp_path / "out", PROMPTS, 1)
