"""Which MLPs become mixtures, and what is said about those that cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3ForConditionalGeneration, GPT2Config, GPT2LMHeadModel

from neuronmoe_plugins.feed_forward import find_feed_forwards
from neuronmoe_plugins.tuner import MoeLayer
from tuner.tiny import FAMILIES, GEMMA, TINY, moe_config, randomised, tiny_model

NAMES = {"phi3": "fused-gated", "gpt_neox": "gpt-neox", "phi": "phi"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_found_with_its_family(family: str) -> None:
    from neuronmoe_plugins.feed_forward.family import feed_forward_families

    found = find_feed_forwards(tiny_model(family))
    assert list(found) == [0, 1, 2]
    expected = feed_forward_families()[NAMES.get(family, "gated")]
    assert {mlp.family.projections for mlp in found.values()} == {expected.projections}
    assert all(mlp.name.endswith(f"layers.{index}.mlp") for index, mlp in found.items())


def test_an_image_tower_is_left_alone() -> None:
    text = TINY | GEMMA
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}
    )
    model = get_peft_model(Gemma3ForConditionalGeneration(config), moe_config(num_experts=2))
    names = [name for name, module in model.named_modules() if isinstance(module, MoeLayer)]
    assert len(names) == 3
    assert all("language_model." in name for name in names)  # then `layers`, or `model.layers` before transformers 4.52


def test_a_model_without_a_known_mlp_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=61))
    with pytest.raises(ValueError) as error:
        get_peft_model(model, moe_config(num_experts=2))
    message = str(error.value)
    assert message.startswith("GPT2LMHeadModel (gpt2) has no MLP that can become a mixture.")
    for looked_for in (
        "gated (a module with gate_proj, up_proj, down_proj and act_fn)",
        "fused-gated",
        "gpt-neox",
        "phi",
    ):
        assert looked_for in message
    assert "found none" in message


class Block(nn.Module):
    """A layer of a network that is nobody's."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states + self.mlp(states)


def test_a_network_that_is_not_of_transformers(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(*(Block(layer.mlp) for layer in tiny_model().model.layers)).eval()

    states = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    model = get_peft_model(network(), moe_config(num_experts=[3, 1, 2], task_type=None))
    torch.testing.assert_close(model(states), network()(states), atol=1e-4, rtol=1e-4)
    expected = randomised(model)(states)
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(network(), tmp_path)(states), expected)
    with pytest.raises(ValueError, match=r"Sequential has no MLP.* in each of its numbered layers .* found none"):
        get_peft_model(nn.Sequential(nn.Linear(16, 16)), moe_config(num_experts=2))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("target", ["gate_proj", "q_proj"])
def test_an_adapter_of_another_method_is_refused(target: str, trained: bool) -> None:
    model = inject_adapter_in_model(LoraConfig(target_modules=[target], init_lora_weights=not trained), tiny_model())
    with pytest.raises(ValueError, match=rf"{target} has an adapter of another method \(peft.tuners.lora.*merge it"):
        get_peft_model(model, moe_config(num_experts=2))


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
def test_a_model_that_is_already_a_mixture_is_refused(kind: str) -> None:
    sizes = {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "num_key_value_heads": 1}
    counts = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TINY | sizes | counts))
    with pytest.raises(ValueError, match=r"has no MLP.*already is a mixture of experts cannot be extended"):
        get_peft_model(model, moe_config(num_experts=2))


def test_a_mixture_in_some_layers_is_counted() -> None:
    sizes = {"moe_intermediate_size": 8, "num_key_value_heads": 1, "num_experts": 4, "mlp_only_layers": [0]}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **TINY | sizes))
    with pytest.raises(ValueError, match=r"found 1 of model\.layers\.\*\.mlp \(gated\)"):
        get_peft_model(model, moe_config(num_experts=2))


class Clipped(nn.Module):
    """Looks like a gated MLP."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = (
            mlp.gate_proj,
            mlp.up_proj,
            mlp.down_proj,
            mlp.act_fn,
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate = self.act_fn(self.gate_proj(hidden_states)).clamp(max=0.1)
        return self.down_proj(gate * self.up_proj(hidden_states))


class Adapted(Clipped):
    """Has a linear layer more."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__(mlp)
        self.side = nn.Linear(16, 16)


@pytest.mark.parametrize(
    ("replace", "message"),
    [(Clipped, "Clipped has the layers .* computes something else"), (Adapted, "has no MLP.*found 2 of")],
)
def test_a_look_alike_is_refused(replace: Callable[[nn.Module], nn.Module], message: str) -> None:
    model = tiny_model()
    model.model.layers[1].mlp = replace(model.model.layers[1].mlp)
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, moe_config(num_experts=2))


def test_an_offloaded_base_is_refused() -> None:
    model = cpu_offload(tiny_model())
    with pytest.raises(ValueError, match="gate_proj is offloaded"):
        get_peft_model(model, moe_config(num_experts=2))
