"""What is measured in models of every built-in kind, with and without adapters."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import peft
import pytest
import torch

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons import pooling
from neuronmoe_plugins.neurons.places import (
    expert_sizes,
    find_activation_functions,
    find_mlp_inputs,
    find_projections,
)
from neurons.collecting import pooled_activations
from tuner.tiny import FAMILIES, moe_config, randomised, tiny_model

SENTENCES = [[1, *range(3, 3 + length)] for length in (5, 2, 9, 7)]
LLAMA = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
         "mlp.down_proj"}  # fmt: skip
EXPECTED = {
    **dict.fromkeys(FAMILIES, LLAMA),
    "phi3": {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"},
    "gpt_neox": {"attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    "phi": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    model = tiny_model(family)
    places, others = find_projections(model)
    assert not others
    assert set(places) == {(layer, name) for layer in range(3) for name in EXPECTED[family]}
    pooled = pooled_activations(model, SENTENCES, batch_size=3)
    for key, place in places.items():
        assert pooled[key].shape == (4, place.units)
    assert [place.units for place in find_activation_functions(model).values()] == [24] * 3
    assert [place.units for place in find_mlp_inputs(model).values()] == [16] * 3
    of_mlps = [p for n, p in model.named_parameters() if "layers.1.mlp." in n]
    of_attention = [p.shape for n, p in model.named_parameters() if re.search(r"layers\.1\.(self_attn|attention)\.", n)]
    matrices = [shape for shape in of_attention if len(shape) == 2]
    sizes = {
        "mlp_parameters": [sum(p.numel() for p in of_mlps)] * 3,
        "mlp_widths": [sum(sum(p.shape) for p in of_mlps if p.dim() == 2)] * 3,
        "mlp_ranks": [16] * 3,
        "attention_widths": [sum(map(sum, matrices))] * 3,
        "attention_ranks": [min(map(min, matrices))] * 3,
    }
    assert expert_sizes(model) == sizes
    mixed = peft.get_peft_model(model, moe_config(num_experts=2, expert_rank=2, targets="both"))
    assert expert_sizes(mixed) == sizes, "an adapter is looked through"


@pytest.mark.parametrize("family", FAMILIES)
def test_active_tokens_are_those_of_the_activation_function(family: str) -> None:
    """Against the sign of what goes into it: silu and gelu keep it."""
    model = tiny_model(family)
    active = pooled_activations(
        model, SENTENCES[:1], batch_size=1, places=find_activation_functions(model), pool=pooling.active_tokens
    )
    first = next(name for name in EXPECTED[family] if name.endswith(("gate_proj", "gate_up_proj", "h_to_4h", "fc1")))
    inputs: list[torch.Tensor] = []
    handle = (
        model.get_decoder().layers[1].get_submodule(first).register_forward_hook(lambda m, i, o: inputs.append(o[0]))
    )
    with torch.no_grad():
        model(torch.tensor(SENTENCES[:1]))
    handle.remove()
    expected = (inputs[0][:, :24] > 0).sum(dim=0)
    np.testing.assert_array_equal(next(v for k, v in active.items() if k[0] == 1)[0], expected)


def test_components_can_be_chosen() -> None:
    model = tiny_model()
    assert {name.split(".")[0] for _, name in find_projections(model, ["attention"])[0]} == {"self_attn"}
    assert {name.split(".")[0] for _, name in find_projections(model, ["mlp"])[0]} == {"mlp"}


def test_gpt2_has_transposed_linear_layers() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=70, n_positions=16)).eval()
    places, _ = find_projections(model)
    assert {name: place.units for (_, name), place in places.items()} == {
        "attn.c_attn": 24, "attn.c_proj": 8, "mlp.c_fc": 32, "mlp.c_proj": 8
    }  # fmt: skip
    assert pooled_activations(model, SENTENCES, batch_size=2)[1, "mlp.c_fc"].shape == (4, 32)
    assert find_mlp_inputs(model) == {}
    assert set(expert_sizes(model).values()) == {None}
    with pytest.raises(UserError, match=r"cannot be observed: GPT2LMHeadModel .* has no MLP"):
        find_activation_functions(model)


OTHERS = {
    "bloom": ({"n_layer": 2, "hidden_size": 16, "n_head": 2}, "self_attention.query_key_value"),
    "falcon": ({"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}, "mlp.dense_h_to_4h"),
    "mpt": ({"n_layers": 2, "d_model": 16, "n_heads": 2, "max_seq_len": 64}, "ffn.up_proj"),
    "opt": ({"num_hidden_layers": 2, "hidden_size": 16, "ffn_dim": 24, "num_attention_heads": 2,
             "word_embed_proj_dim": 16, "max_position_embeddings": 64}, "fc1"),
    "starcoder2": ({"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
                    "num_key_value_heads": 1}, "mlp.c_fc"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_other_kinds_have_their_own_names(kind: str, padding_side: Any) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes, name = OTHERS[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=70, **sizes)).eval()
    one = pooled_activations(model, SENTENCES, batch_size=1)
    assert {(0, name), (1, name)} < set(one)
    for key, values in pooled_activations(model, SENTENCES, batch_size=4, padding_side=padding_side).items():
        np.testing.assert_allclose(values, one[key], rtol=0, atol=1e-6)


def test_model_that_is_a_mixture_has_no_mlp_projections() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        num_hidden_layers=1, hidden_size=8, num_attention_heads=2, num_key_value_heads=1, vocab_size=70,
        intermediate_size=8, num_local_experts=2,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    with pytest.raises(UserError, match=r"no linear layers in the mlp of decoder layer 0 \(MixtralDecoderLayer\)"):
        find_projections(model)
    places, _ = find_projections(model, ["attention"])
    assert len(pooled_activations(model, SENTENCES, batch_size=2, places=places)) == 4


def test_model_without_decoder_layers_is_refused() -> None:
    model: Any = tiny_model()
    model.config.num_hidden_layers = 5
    with pytest.raises(UserError, match="looked in its LlamaModel for a list of 5 modules"):
        find_projections(model)


def test_linear_layers_elsewhere_are_named() -> None:
    model: Any = tiny_model()
    model.model.layers[1].adapter_gate = torch.nn.Linear(16, 16)
    assert find_projections(model)[1] == ["adapter_gate"]


def test_lora_is_measured_as_a_sum() -> None:
    torch.manual_seed(3)
    model = peft.get_peft_model(
        tiny_model(), peft.LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    ).eval()
    pooled = pooled_activations(model, SENTENCES, batch_size=3)
    merged = model.merge_and_unload()
    for key, values in pooled_activations(merged, SENTENCES, batch_size=3).items():
        np.testing.assert_allclose(pooled[key], values, rtol=0, atol=1e-5)


def test_a_mixture_in_attention_is_measured_with_what_its_experts_add() -> None:
    options = {"num_experts": 2, "expert_rank": 4, "targets": "both"}
    model = randomised(peft.get_peft_model(tiny_model(), moe_config(**options)))
    outputs: list[torch.Tensor] = []
    attention = model.get_base_model().get_decoder().layers[0].self_attn
    handle = attention.register_forward_hook(lambda module, args, output: outputs.append(output[0][0]))
    with torch.no_grad():
        model(torch.tensor(SENTENCES[:1]))
    handle.remove()
    assert {name for _, name in find_projections(model)[0]} == LLAMA
    found = pooled_activations(model, SENTENCES[:1], batch_size=1)[0, "self_attn.o_proj"]
    np.testing.assert_allclose(found[0], outputs[0].mean(dim=0), rtol=0, atol=1e-6)
    assert not np.allclose(found, pooled_activations(tiny_model(), SENTENCES[:1], batch_size=1)[0, "self_attn.o_proj"])


@pytest.mark.parametrize("family", FAMILIES)
def test_mixture_is_measured_by_its_original_mlp_on_all_tokens(family: str) -> None:
    """The trained mixture changes what reaches a layer; at what reaches it, the original MLP answers as a dense one."""
    model = randomised(peft.get_peft_model(tiny_model(family), moe_config(num_experts=[3, 1, 2], topk=1)))
    base = tiny_model(family)
    inputs: list[torch.Tensor] = []
    names = EXPECTED[family]
    mlp_name = next(name for name in names if name.startswith("mlp")).split(".")[0]
    layer = model.get_base_model().get_decoder().layers[2].get_submodule(mlp_name)
    handle = layer.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    with torch.no_grad():
        model(torch.tensor(SENTENCES[:1]))
    handle.remove()
    places = find_projections(model)[0]
    assert set(places) == {(layer, name) for layer in range(3) for name in names}
    pooled = pooled_activations(model, SENTENCES, batch_size=3)
    dense = base.get_decoder().layers[2]
    for name in (name for name in names if name.startswith("mlp")):
        outputs: list[torch.Tensor] = []
        handle = dense.get_submodule(name).register_forward_hook(lambda m, i, o, into=outputs: into.append(o[0]))
        with torch.no_grad():
            dense.get_submodule(mlp_name)(inputs[0])
        handle.remove()
        np.testing.assert_allclose(pooled[2, name][0], outputs[0].mean(dim=0), rtol=0, atol=1e-5)
    expected = pooled_activations(base, SENTENCES, batch_size=3)
    first, last = (next(key for key in pooled if key[0] == number) for number in (0, 2))
    np.testing.assert_allclose(pooled[first], expected[first], rtol=0, atol=1e-5)
    assert not np.allclose(pooled[last], expected[last], atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_function_of_a_mixture_is_that_of_its_original_mlp(family: str) -> None:
    """In the first layer nothing before the MLP differs from the base model."""
    model = randomised(peft.get_peft_model(tiny_model(family), moe_config(num_experts=3, topk=1)))
    base = tiny_model(family)
    found, expected = (
        pooled_activations(
            of, SENTENCES, batch_size=3, places=find_activation_functions(of), pool=pooling.active_tokens
        )
        for of in (model, base)
    )
    assert list(found) == list(expected)
    first = next(iter(found))
    np.testing.assert_array_equal(found[first], expected[first])


def test_group_classifiers_decide_for_each_sentence() -> None:
    """Against the model called with one sentence at a time; twenty short ones share a batch with a long one."""
    config = moe_config(num_experts=[3, 3, 3], old_num_experts=[2, 2, 2], group_nums=[3, 3, 3])
    model = randomised(peft.get_peft_model(tiny_model(), config))
    sentences = [[1, *range(3, 50)], *([1, first, first + 7] for first in range(3, 23))]
    expected: list[torch.Tensor] = []
    projection = model.get_base_model().model.layers[2].self_attn.q_proj
    handle = projection.register_forward_hook(lambda m, i, output: expected.append(output[0].mean(dim=0)))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "token_classify" in name:
                parameter.normal_()
        for sentence in sentences:
            model(input_ids=torch.tensor([sentence]), attention_mask=torch.ones(1, len(sentence)))
    handle.remove()
    pooled = pooled_activations(model, sentences, batch_size=21)[2, "self_attn.q_proj"]
    np.testing.assert_allclose(pooled, torch.stack(expected), rtol=0, atol=1e-5)
