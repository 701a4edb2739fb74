"""Gradients against torch.autograd over a loss of the test's own, exponents against SciPy's fit of a power law."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F  # noqa: N812

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.layer_measures import language_blocks
from neuronmoe_plugins.neurons.layer_scores import (
    deviation,
    hill_exponent,
    knock_outs,
    mean_exponent,
    mean_loss,
    mixtures_of_all_layers,
    mlp_weights,
    squared_gradients,
)
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from tuner.tiny import moe_config, randomised


def tiny(kind: str) -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)).eval()
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=50, **sizes)).eval()


def test_layers_that_share_keys_find_them_in_the_cache() -> None:
    model = tiny("llama")
    used: list[bool] = []
    model.forward = lambda **given: SimpleNamespace(loss=used.append(given["use_cache"]))
    mean_loss(model, [1, 2, 3])
    model.config.num_kv_shared_layers = 1
    mean_loss(model, [1, 2, 3])
    assert used == [False, True]


@pytest.mark.parametrize(("kind", "matrices"), [("llama", 3), ("gpt-neox", 4)])
def test_gradients_are_those_of_autograd_and_never_two_at_once(kind: str, matrices: int) -> None:
    model = tiny(kind)
    mlps = [layer.mlp for layer in model.get_decoder().layers]
    blocks = torch.randint(50, (2, 20)).tolist()
    expected = []
    for block in blocks:
        logits = model(torch.tensor([block])).logits[0]
        loss = F.cross_entropy(logits[:-1], torch.tensor(block[1:]))
        found = [torch.autograd.grad(loss, list(mlp.parameters()), retain_graph=True) for mlp in mlps]
        assert {len(own) for own in found} == {matrices}
        expected.append([sum(float(each.double().square().sum()) for each in own) for own in found])
    held: list[int] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: held.append(sum(each.grad is not None for each in model.parameters()))
        )
    with squared_gradients(model, mlp_weights(model)) as of_block:
        ours = [of_block(block) for block in blocks]
    assert np.array(ours) == pytest.approx(np.array(expected), rel=1e-5)
    assert held == [1] * (len(blocks) * len(mlps) * matrices)
    assert not any(each.requires_grad or each.grad is not None for each in model.parameters())


def sentences(**changes: Any) -> TokenizedSentences:
    """Languages a and b; b's 10 sentences of 4 tokens are counted on."""
    ids = [[1, 2, 3]] + [[100 + 4 * row + token for token in range(4)] for row in range(10)]
    membership = [[1] + [0] * 10, [0] + [1] * 10]
    names = [f"t:{row}" for row in range(11)]
    return TokenizedSentences(**{"languages": ["a", "b"], "membership": membership, "names": names,
                                 "token_ids": ids, "padding_side": "right"} | changes)  # fmt: skip


def test_blocks_join_sentences_in_an_order_that_the_seed_draws() -> None:
    one = language_blocks(sentences(), 1, 3, seed=1)
    assert one["a"] == [[1, 2, 3]]
    assert (language_blocks(sentences(), 1, 3, seed=1), len(one["b"][0])) == (one, 3)
    whole = {
        seed: language_blocks(sentences(languages=["b"], membership=[[0] + [1] * 10]), 2, 20, seed) for seed in range(3)
    }
    for blocks in whole.values():
        joined = [token for block in blocks["b"] for token in block]
        assert sorted(joined) == list(range(100, 140))
        assert all(
            joined[start : start + 4] == list(range(joined[start], joined[start] + 4)) for start in range(0, 40, 4)
        )
    assert len({str(blocks) for blocks in whole.values()}) == 3
    spans = [(0, 3)] + [(1, 3)] * 10
    (own,) = language_blocks(sentences(own=spans), 1, 3, seed=1)["b"]
    assert all(token % 4 in (1, 2) for token in own)


@pytest.mark.parametrize(
    ("count", "tokens", "advice"),
    [(9, 9, "pass more --samples or --blocks 4"), (1, 64, "pass more --samples")],
)
def test_too_little_text(count: int, tokens: int, advice: str) -> None:
    only = sentences(languages=["b"], membership=[[0] + [1] * 10])
    with pytest.raises(UserError) as error:
        language_blocks(only, count, tokens, seed=1)
    wrong = f"b: {count} blocks of {tokens} tokens are to be measured, but the 10 sampled sentences have 40 in all; "
    assert str(error.value) == wrong + advice


@pytest.mark.parametrize("exponent", [2.0, 3.5, 6.0])
def test_exponent_of_a_matrix_with_a_power_law(exponent: float) -> None:
    size, others = 600, 640
    eigenvalues = (np.arange(1, size + 1) / size) ** (-1 / (exponent - 1))  # a density in proportion to its -exponent
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(side, size, dtype=torch.float64))[0] for side in (size, others))
    matrix = (left * torch.from_numpy(eigenvalues).sqrt()) @ right.T
    ours = mean_exponent({"weight": nn.Parameter(matrix.float()), "bias": nn.Parameter(torch.ones(size))})
    assert ours == pytest.approx(exponent, rel=0.02)
    tail = eigenvalues[: size // 2]
    shape, *_ = stats.pareto.fit(tail, floc=0, fscale=eigenvalues[size // 2])
    assert ours == pytest.approx(1 + shape, rel=1e-3)


def test_exponent_by_hand() -> None:
    found = hill_exponent(torch.tensor([math.e**5, math.e**3, math.e, 1.0], dtype=torch.float64))
    assert found == pytest.approx(1 + 2 / (4 + 2))


@pytest.mark.parametrize("diagonal", [[1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 1e-9, 0.0]])
def test_a_spectrum_without_exponent(diagonal: list[float]) -> None:
    with pytest.raises(
        UserError, match=r"^--measure spectral: w has no exponent: its larger eigenvalues are all equal"
    ):
        mean_exponent({"w": nn.Parameter(torch.diag(torch.tensor(diagonal)))})


def test_weights_that_cannot_be_measured() -> None:
    model = tiny("llama")
    layer = model.model.layers[1].mlp
    layer.up_proj.weight = nn.Parameter(torch.zeros(24, 16, dtype=torch.int8), requires_grad=False)
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(
        UserError, match=rf"^--measure needs the MLPs' weights as they were trained: {name} is quantised"
    ):
        mlp_weights(model)
    layer.to("meta")
    with pytest.raises(UserError, match=r"layers.1.mlp.gate_proj.weight is not in memory$"):
        mlp_weights(model)
    del layer.up_proj
    with pytest.raises(UserError, match=r"^--measure: LlamaForCausalLM .* has no MLP that can become a mixture"):
        mlp_weights(model)


def extended(topk: int = 2, **options: Any) -> Any:
    """Tiny Llama with two experts in each layer, all of whose weights are others."""
    import peft

    return randomised(peft.get_peft_model(tiny("llama"), moe_config(num_experts=2, topk=topk, **options))).eval()


@pytest.mark.parametrize("rank", [None, 2])
def test_deviations_are_those_of_the_weights(rank: int | None) -> None:
    model = extended(expert_rank=rank)
    for layer, mixture in mixtures_of_all_layers(model).items():
        parameters = dict(mixture.named_parameters())
        total = 0.0
        for name in ("gate_proj", "up_proj", "down_proj"):
            if rank is None:
                change = parameters[f"moe_{name}.default"][0] - getattr(mixture.get_base_layer(), name).weight
            else:
                change = (
                    mixture.scaling["default"]
                    * parameters[f"moe_{name}_lora_B.default"][0]
                    @ parameters[f"moe_{name}_lora_A.default"][0]
                )
            total += torch.linalg.matrix_norm(change.double()).item() ** 2
        assert deviation(mixture) == pytest.approx(math.sqrt(total), rel=1e-5)
        assert mixture.layer_index == layer
    with pytest.raises(UserError, match=r"^--measure parameter-deviation .* of layer 1 is not all in memory$"):
        deviation(mixtures_of_all_layers(model)[1].to("meta"))


def test_knock_outs_are_the_losses_of_models_without_the_expert() -> None:
    """Of one whose experts of that layer are the original MLP again."""
    model, block = extended(), torch.randint(50, (20,)).tolist()
    ids = torch.tensor([block])

    def loss() -> float:
        return F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]).item()

    with torch.no_grad():
        whole, expected = loss(), []
        for mixture in mixtures_of_all_layers(model).values():
            kept = {name: getattr(mixture, f"moe_{name}")["default"].clone() for name in mixture.weight_names}
            for name in kept:
                getattr(mixture, f"moe_{name}")["default"].copy_(getattr(mixture.get_base_layer(), name).weight)
            expected.append(loss() - whole)
            for name, values in kept.items():
                getattr(mixture, f"moe_{name}")["default"].copy_(values)
    assert knock_outs(model, mixtures_of_all_layers(model), block) == pytest.approx(expected, abs=2e-6)
    assert max(map(abs, expected)) > 1e-3
    assert loss() == whole
