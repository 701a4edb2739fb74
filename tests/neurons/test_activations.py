"""Pooled activations against a plain forward pass, and what may not change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons import activations
from neuronmoe_plugins.neurons.activations import PROJECTIONS, find_projections, pool_activations

SENTENCES = [[1, *range(3, 3 + length)] for length in (5, 1, 17, 9, 9, 30, 2)]


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()


def plain_means(model: Any, layer: int, module: str) -> np.ndarray:
    """One sentence at a time, no padding, `torch.mean` over the tokens."""
    means: list[torch.Tensor] = []
    projection = model.model.layers[layer].get_submodule(module)
    handle = projection.register_forward_hook(lambda module, inputs, output: means.append(output[0].mean(dim=0)))
    with torch.no_grad():
        for sentence in SENTENCES:
            model(torch.tensor([sentence]))
    handle.remove()
    return torch.stack(means).numpy()


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_and_padding_do_not_change_the_means(model: Any, padding_side: Any, batch_size: int) -> None:
    pooled = pool_activations(model, SENTENCES, batch_size=batch_size, padding_side=padding_side)
    assert list(pooled) == [(layer, module) for layer in range(4) for module in PROJECTIONS]
    for (layer, module), values in pooled.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, plain_means(model, layer, module), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "mask", "positions"),
    [
        ("right", [[1, 1, 1], [1, 0, 0]], [[0, 1, 2], [0, 0, 0]]),
        ("left", [[1, 1, 1], [0, 0, 1]], [[0, 1, 2], [0, 0, 0]]),
    ],
)
def test_positions_count_real_tokens_only(side: Any, mask: list[list[int]], positions: list[list[int]]) -> None:
    batch = activations._padded([[7, 8, 9], [7]], side, torch.device("cpu"))
    real = torch.tensor(mask, dtype=torch.bool)
    assert batch["attention_mask"].tolist() == mask
    assert batch["input_ids"][real].tolist() == [7, 8, 9, 7]
    assert batch["position_ids"][real].tolist() == torch.tensor(positions)[real].tolist()


def test_gate_is_taken_before_its_activation(model: Any) -> None:
    pooled = pool_activations(model, SENTENCES, batch_size=4)
    # silu never falls below -0.28
    assert pooled[0, "mlp.gate_proj"].min() < -0.3


def test_model_is_left_as_it_was(model: Any) -> None:
    model.train()
    pool_activations(model, SENTENCES[:1], batch_size=1)
    assert model.training
    model.eval()
    assert not any(module._forward_hooks for module in find_projections(model).values())


def test_results_can_live_in_files(model: Any, tmp_path: Path) -> None:
    in_memory = pool_activations(model, SENTENCES, batch_size=2)
    in_files = pool_activations(model, SENTENCES, batch_size=2, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(in_memory)
    for key, values in in_memory.items():
        assert isinstance(in_files[key], np.memmap)
        np.testing.assert_array_equal(in_files[key], values)


def test_full_disk_is_refused_before_writing(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(activations.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(UserError, match=r"0\.0 GB free"):
        pool_activations(model, SENTENCES, batch_size=2, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_model_without_gated_mlps_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10, n_positions=8))
    with pytest.raises(UserError, match=r"GPT2LMHeadModel has no decoder layers.*looked for.*mlp\.gate_proj"):
        find_projections(gpt2)
    neox = GPTNeoXForCausalLM(
        GPTNeoXConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, vocab_size=10, intermediate_size=8)
    )
    with pytest.raises(UserError, match=r"layer 0 \(GPTNeoXLayer\) has no self_attn\.q_proj, .*mlp\.gate_proj.*looked"):
        find_projections(neox)
