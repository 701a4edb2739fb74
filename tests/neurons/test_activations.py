"""Pooled activations against a plain forward pass, and what may not change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons import pooling
from neuronmoe_plugins.neurons.activations import batches_by_length, padded, working_device
from neuronmoe_plugins.neurons.places import Place, find_mlp_inputs, find_projections
from neuronmoe_plugins.neurons.pooling import Recorder, recording
from neurons.collecting import pooled_activations

SENTENCES = [[1, *range(3, 3 + length)] for length in (5, 1, 17, 9, 9, 30, 2)]
PLAIN = {
    pooling.mean: lambda values: values.mean(dim=0),
    pooling.maximum: lambda values: values.amax(dim=0),
    pooling.active_tokens: lambda values: (values > 0).sum(dim=0).float(),
    pooling.sum_of_directions: lambda values: (values / values.norm(dim=1, keepdim=True)).sum(dim=0),
}


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()


def one_by_one(model: Any, place: Place, pool: pooling.Pooling) -> np.ndarray:
    """One sentence at a time, no padding, the obvious formula over the tokens."""
    rows: list[torch.Tensor] = []
    handle = place.module.register_forward_hook(lambda module, inputs, output: rows.append(PLAIN[pool](output[0])))
    with torch.no_grad():
        for sentence in SENTENCES:
            model(torch.tensor([sentence]))
    handle.remove()
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("pool", PLAIN, ids=lambda pool: pool.__name__)
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_and_padding_do_not_change_the_result(
    model: Any, padding_side: Any, batch_size: int, pool: pooling.Pooling
) -> None:
    places = find_projections(model)[0]
    pooled = pooled_activations(model, SENTENCES, batch_size=batch_size, padding_side=padding_side, pool=pool)
    assert len(pooled) == 28
    for key, values in pooled.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, one_by_one(model, places[key], pool), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pool", PLAIN, ids=lambda pool: pool.__name__)
def test_padding_may_hold_nan(pool: pooling.Pooling) -> None:
    values = torch.tensor([[[1.0, -2.0], [3.0, 0.5], [torch.nan, torch.nan]]])
    pooled = pool(values, pooling.RealTokens.of(torch.tensor([[1, 1, 0]])))
    np.testing.assert_allclose(pooled[0], PLAIN[pool](values[0, :2]), rtol=1e-6)


@pytest.mark.parametrize(
    ("side", "mask", "positions"),
    [
        ("right", [[1, 1, 1], [1, 0, 0]], [[0, 1, 2], [0, 0, 0]]),
        ("left", [[1, 1, 1], [0, 0, 1]], [[0, 1, 2], [0, 0, 0]]),
    ],
)
def test_positions_count_real_tokens_only(side: Any, mask: list[list[int]], positions: list[list[int]]) -> None:
    batch = padded([[7, 8, 9], [7]], side, torch.device("cpu"))
    real = torch.tensor(mask, dtype=torch.bool)
    assert batch["attention_mask"].tolist() == mask
    assert batch["input_ids"][real].tolist() == [7, 8, 9, 7]
    assert batch["position_ids"][real].tolist() == torch.tensor(positions)[real].tolist()


def test_batches_hold_every_sentence_once_the_longest_first() -> None:
    found = batches_by_length(SENTENCES, 3)
    assert sorted(row for batch in found for row in batch) == list(range(7))
    assert [[len(SENTENCES[row]) for row in batch] for batch in found] == [[31, 18, 10], [10, 6, 3], [2]]


def test_gate_is_taken_before_its_activation(model: Any) -> None:
    pooled = pooled_activations(model, SENTENCES, batch_size=4)
    # silu never falls below -0.28
    assert pooled[0, "mlp.gate_proj"].min() < -0.3


def test_input_of_the_mlp_is_taken_after_its_norm(model: Any) -> None:
    pooled = pooled_activations(model, SENTENCES[:1], batch_size=1, places=find_mlp_inputs(model))
    norm_output: list[torch.Tensor] = []
    layer = model.model.layers[2]
    handle = layer.post_attention_layernorm.register_forward_hook(lambda m, i, output: norm_output.append(output[0]))
    with torch.no_grad():
        model(torch.tensor(SENTENCES[:1]))
    handle.remove()
    np.testing.assert_allclose(pooled[2, "mlp input"][0], norm_output[0].mean(dim=0), rtol=0, atol=1e-6)


def test_model_is_left_as_it_was(model: Any) -> None:
    model.train()
    pooled_activations(model, SENTENCES[:1], batch_size=1)
    assert model.training
    model.eval()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_bfloat16_is_pooled_in_float32(model: Any) -> None:
    values = torch.full((1, 3, 1), 1.0, dtype=torch.bfloat16)
    values[0, 0] = 256.0  # 256 + 1 is 256 in bfloat16
    assert pooling.mean(values, pooling.RealTokens.of(torch.ones(1, 3))).item() == 86.0


def test_module_that_sees_only_some_tokens_is_refused() -> None:
    linear = torch.nn.Linear(2, 3)
    with recording({(4, "mlp.experts.0"): (Place(linear, 3), pooling.mean)}) as recorder:
        assert isinstance(recorder, Recorder)
        recorder.start_batch(torch.ones(2, 5))
        linear(torch.zeros(2, 5, 2))
        assert recorder.pooled[4, "mlp.experts.0"].shape == (2, 3)
        with pytest.raises(UserError, match=r"layer 4 mlp\.experts\.0 does not see every token"):
            linear(torch.zeros(7, 2))
        linear(torch.eye(2).repeat_interleave(5, dim=0))
        torch.testing.assert_close(recorder.pooled[4, "mlp.experts.0"], linear.weight.T + linear.bias)


@pytest.mark.parametrize("embeddings", ["cpu", "disk"])
def test_model_can_be_offloaded(tiny_model_dir: Path, tmp_path: Path, embeddings: str) -> None:
    """As device_map="auto" does with a model that is larger than the devices."""
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    device_map = {"model.embed_tokens": embeddings, "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    device_map |= {f"model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(4)}
    split = AutoModelForCausalLM.from_pretrained(tiny_model_dir, device_map=device_map, offload_folder=tmp_path)
    assert split.model.layers[1].mlp.up_proj.weight.is_meta
    assert working_device(split) == torch.device("cpu")
    expected = pooled_activations(whole, SENTENCES, batch_size=3)
    for key, values in pooled_activations(split, SENTENCES, batch_size=3).items():
        np.testing.assert_array_equal(values, expected[key])


def test_place_that_takes_no_part_is_refused(model: Any) -> None:
    places = {(0, "self_attn.spare_proj"): Place(torch.nn.Linear(2, 3), 3)}
    with pytest.raises(UserError, match=r"layer 0 self_attn\.spare_proj has no part in a forward pass"):
        pooled_activations(model, SENTENCES, batch_size=3, places=places)


@pytest.mark.parametrize("pool", PLAIN, ids=lambda pool: pool.__name__)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_hidden(pool: pooling.Pooling, value: float) -> None:
    values = torch.ones(1, 3, 2)
    values[0, 1, 0] = value
    assert not torch.isfinite(pool(values, pooling.RealTokens.of(torch.ones(1, 3)))[0, 0])
