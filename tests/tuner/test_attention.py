"""Experts of low rank in attention against a dense model with W + scaling B A for each token, and PEFT's LoRA."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn import functional as F  # noqa: N812

from neuronmoe_plugins.integrations.deepspeed import mark_leaf_modules
from neuronmoe_plugins.tuner import MixtureLayer, MoeConfig, MoeLayer
from neuronmoe_plugins.tuner.attention import MoeAttention
from tuner.tiny import GROUPS, logits, moe_config, randomised, tiny_model

RANK = 4
OPTIONS = {"num_experts": [3, 1, 2], "expert_rank": RANK, "targets": "attention"}
Batch = dict[str, torch.Tensor]


def mixture(family: str = "llama", **options: Any) -> PeftModel:
    torch.manual_seed(5)
    return randomised(get_peft_model(tiny_model(family), moe_config(**OPTIONS | options)))


def mixtures(model: nn.Module) -> list[MoeAttention]:
    return [module for module in model.modules() if isinstance(module, MoeAttention)]


def loss_and_gradients(model: PeftModel, batch: Batch) -> Batch:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


class DenseAttention:
    """Stands in for a mixture's forward: every token's projections are by weights of its own, W + sum w_e s B_e A_e."""

    def __init__(self, layer: MoeAttention, topk: int) -> None:
        self.layer, self.topk = layer, topk
        self.shares = torch.empty(0)

    def __call__(self, hidden_states: torch.Tensor, **arguments: Any) -> Any:
        probabilities = torch.softmax(F.linear(hidden_states, self.layer.moe_router["default"].weight), dim=-1)
        threshold = probabilities.topk(self.topk, dim=-1).values[..., -1:]
        chosen = probabilities * (probabilities >= threshold)
        self.shares = chosen if self.topk == 1 else chosen / chosen.sum(dim=-1, keepdim=True)
        names = self.layer.family.projections
        kept = {name: getattr(self.layer.base_layer, name) for name in names}
        for name, linear in kept.items():
            setattr(self.layer.base_layer, name, _PerToken(self, name, linear))
        output = self.layer.base_layer(hidden_states, **arguments)
        for name, linear in kept.items():
            setattr(self.layer.base_layer, name, linear)
        return output


class _PerToken(nn.Module):
    def __init__(self, dense: DenseAttention, name: str, linear: nn.Linear) -> None:
        super().__init__()
        self.__dict__.update(dense=dense, name=name, linear=linear)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        layer = self.dense.layer
        down, up = (getattr(layer, f"moe_{self.name}_lora_{part}")["default"] for part in "AB")
        rows = []
        for share, token in zip(self.dense.shares.flatten(0, 1), states.flatten(0, 1), strict=True):
            weight = self.linear.weight
            for expert in range(len(down)):
                weight = weight + share[expert + 1] * layer.scaling["default"] * (up[expert] @ down[expert])
            rows.append(F.linear(token, weight, self.linear.bias))
        return torch.stack(rows).view(*states.shape[:-1], -1)


@contextmanager
def dense(model: nn.Module, topk: int) -> Iterator[None]:
    for layer in mixtures(model):
        layer.forward = DenseAttention(layer, topk)
    yield
    for layer in mixtures(model):
        del layer.forward


@pytest.mark.parametrize("implementation", ["sorted", "grouped_mm", "loop"])
@pytest.mark.parametrize("topk", [1, 2])
def test_output_and_gradients_are_those_of_a_dense_model(implementation: str, topk: int, batch: Batch) -> None:
    model = mixture(topk=topk, experts_implementation=implementation).train()
    del batch["old_language_mask"]
    found = loss_and_gradients(model, batch)
    with dense(model, topk):
        expected = loss_and_gradients(model, batch)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "phi3", "gpt_neox", "phi"])
def test_every_family(family: str, batch: Batch) -> None:
    before = logits(tiny_model(family), batch)
    assert logits(get_peft_model(tiny_model(family), moe_config(**OPTIONS)), batch).equal(before), "a new mixture"
    model = mixture(family)
    assert len(mixtures(model)) == 2
    found = logits(model, batch)
    with dense(model, 2):
        torch.testing.assert_close(found, logits(model, batch), atol=1e-4, rtol=1e-4)
    copied = copy.deepcopy(model)
    assert logits(copied, batch).equal(found)
    with model.disable_adapter():
        assert logits(model, batch).equal(before)
    assert logits(model.unload(), batch).equal(before)


def test_one_expert_that_gets_all_tokens_is_pefts_lora(batch: Batch) -> None:
    names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=6, target_modules=names)
    lora, model = get_peft_model(tiny_model(), config), mixture(num_experts=2, topk=1, lora_alpha=6)
    for layer in mixtures(model):
        layer.moe_router["default"].register_forward_hook(lambda *call: torch.tensor([-50.0, 50.0]).expand_as(call[-1]))
    ours = dict(model.named_parameters())
    pairs = {}
    for name, parameter in lora.named_parameters():
        if "lora_" in name:
            block, projection, part = name.removesuffix(".default.weight").rsplit(".", 2)
            pairs[name] = f"{block}.moe_{projection}_{part}.default"
            parameter.data.copy_(ours[pairs[name]][0])
    assert len(pairs) == 3 * 4 * 2
    del batch["old_language_mask"]
    expected, found = loss_and_gradients(lora.eval(), batch), loss_and_gradients(model, batch)
    torch.testing.assert_close(found["loss"], expected["loss"])
    for theirs, name in pairs.items():
        torch.testing.assert_close(found[name][0], expected[theirs], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("options", [{}, GROUPS], ids=["", "groups"])
def test_generation_with_a_cache_is_that_without(options: dict[str, Any], batch: Batch) -> None:
    model = mixture(**{"targets": "both"} | options)
    prompt = {name: batch[name].flip(1) for name in ("input_ids", "attention_mask")}  # padding on the left
    prompt["input_ids"] = prompt["input_ids"].where(prompt["attention_mask"] == 1, 0)
    call = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "output_logits": True}
    with_cache, without = (
        model.generate(**prompt, **call, return_dict_in_generate=True, use_cache=use) for use in (True, False)
    )
    assert with_cache.sequences.equal(without.sequences)
    torch.testing.assert_close(with_cache.logits, without.logits, atol=1e-4, rtol=1e-4)


def test_both_have_routers_of_their_own_in_losses_and_logs(batch: Batch) -> None:
    model = mixture(targets="both", aux_loss_coef=0.5, lpr_loss_coef=0.25).train()
    routers = [module for module in model.modules() if isinstance(module, MixtureLayer)]
    seen: dict[int, torch.Tensor] = {}
    for layer in routers:
        layer.moe_router["default"].register_forward_hook(
            lambda *call, layer=layer: seen.update({layer.block: call[-1]})
        )
    outputs = model(**batch)
    assert len(seen) == 4
    old = batch["old_language_mask"].flatten().bool()
    priors = [-values.log_softmax(-1)[old, 0].mean().detach() for values in seen.values()]
    metrics = model.base_model.pop_metrics()
    assert metrics["lpr_loss"] == pytest.approx(torch.stack(priors).mean().item(), abs=1e-5)
    expected = metrics["lm_loss"] + 0.5 * metrics["aux_loss"] + 0.25 * metrics["lpr_loss"]
    assert outputs.loss.item() == pytest.approx(expected, abs=1e-5)
    blocks = [name.split("/")[1] for name in metrics if name.startswith("expert0_share/")]
    assert blocks == ["layer_0_attention", "layer_0", "layer_2_attention", "layer_2"], "as a forward meets them"
    outputs.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_checkpointed_and_in_other_threads(batch: Batch) -> None:
    model = mixture(targets="both", aux_loss_coef=0.5).train()
    del batch["old_language_mask"]
    expected = loss_and_gradients(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = loss_and_gradients(model, batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    model.gradient_checkpointing_disable()
    batches = [{name: value[:, :length] for name, value in batch.items()} for length in (9, 4, 6, 5)] * 3
    alone = [logits(model, one) for one in batches]
    with ThreadPoolExecutor(4) as threads:
        for one, other in zip(alone, threads.map(lambda one: logits(model, one), batches), strict=True):
            assert one.equal(other)


@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_backward_hook_finds_the_gradients(checkpointed: bool, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """By which ZeRO-3 takes them; attention gets its hidden states by name."""
    stub, leaves = ModuleType("deepspeed.utils"), []
    vars(stub)["set_z3_leaf_modules"] = lambda model, kinds: leaves.extend(kinds)
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.utils", stub)
    model = mixture(targets="both", aux_loss_coef=0.5).train()
    mark_leaf_modules(model)
    assert set(leaves) == {MoeLayer, MoeAttention}
    if checkpointed:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    found: list[bool] = []

    def look(layer: nn.Module, *gradients: Any) -> None:
        found.extend(p.grad is not None for p in layer.parameters() if p.requires_grad)

    for layer in (module for module in model.modules() if isinstance(module, MixtureLayer)):
        layer.register_full_backward_hook(look)
    del batch["old_language_mask"]
    model(**batch).loss.backward()
    assert all(found)
    assert len(found) == 2 * (8 + 1) + 2 * (6 + 1)


def test_saved_extended_and_its_routers_trained(batch: Batch, tmp_path: Path) -> None:
    model = mixture(targets="both", num_experts=2)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert loaded.peft_config["default"].targets == "both"
    assert logits(loaded, batch).equal(logits(model, batch))
    options = {"expert_rank": RANK, "targets": "both"}
    config = moe_config(num_experts=[4, 2, 3], old_num_experts=2, **options)
    extended = PeftModel.from_pretrained(tiny_model(), tmp_path, config=config, is_trainable=True)
    del batch["old_language_mask"]
    trained = loss_and_gradients(extended.train(), batch)
    first = extended.base_model.model.model.layers[0].self_attn
    assert first.moe_old_k_proj_lora_B["default"].any(), "as it was saved"
    assert not first.moe_k_proj_lora_B["default"].any(), "two that equal the base"
    assert any(name.endswith("layers.0.self_attn.moe_k_proj_lora_B.default") for name in trained)
    assert not any("moe_old_" in name for name in trained)
    config = moe_config(num_experts=2, train_only_router=True, **options)
    stage2 = PeftModel.from_pretrained(tiny_model(), tmp_path, config=config, is_trainable=True)
    names = [name for name, parameter in stage2.named_parameters() if parameter.requires_grad]
    assert len(names) == 6
    assert all("moe_router" in name for name in names)


def test_another_dtype_and_autocast(batch: Batch) -> None:
    model = mixture(targets="both")
    expected = logits(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(logits(model, batch).float(), expected, atol=0.3, rtol=0.1)
    model.get_base_model().bfloat16()
    for layer in mixtures(model):
        layer.float()
        layer.base_layer.bfloat16()
    found = logits(model, batch)
    assert found.dtype == torch.bfloat16, "keys and values keep the base's"
    torch.testing.assert_close(found.float(), expected, atol=0.3, rtol=0.1)


def without(name: str) -> Callable[[nn.Module], None]:
    def change(model: Any) -> None:
        delattr(model.model.layers[1].self_attn, name)

    return change


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"targets": "heads"}, None, "^targets must be one of mlp, attention, both; got 'heads'"),
        ({"expert_rank": None}, None, "^targets is attention, which needs expert_rank: attention has no full copies"),
        ({"expert_rank": 9}, None, "^expert_rank is 9, but k_proj is 8 x 16: give at most 8, or no rank"),
        (
            {},
            without("o_proj"),
            r"^model\.layers\.1 of LlamaForCausalLM has no attention .* q_proj, k_proj, v_proj, o_",
        ),
        ({"modules_to_save": ["k_proj"]}, None, r"names k_proj, but model\.layers\.0\.self_attn becomes a mixture"),
    ],
)
def test_refused(options: dict[str, Any], change: Callable[[nn.Module], None] | None, message: str) -> None:
    model = tiny_model()
    if change is not None:
        change(model)
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, MoeConfig(task_type="CAUSAL_LM", **OPTIONS | options))


def test_not_merged() -> None:
    with pytest.raises(ValueError, match="cannot be merged"):
        mixture().merge_and_unload()
