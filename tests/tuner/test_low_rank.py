"""Experts of low rank against full copies with the same weights, W + scaling B A."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from neuronmoe_plugins.convert import convert
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.feed_forward.family import FeedForwardFamily
from neuronmoe_plugins.tuner import MoeConfig, MoeLayer, config
from neuronmoe_plugins.tuner import experts as implementations
from tuner.expert_layers import HIDDEN, INTERMEDIATE, Results, assert_same, hidden_states, make_layer, run
from tuner.tiny import FAMILIES, GROUPS, logits, moe_config, randomised, tiny_model

RANK = 4
OPTIONS = {"num_experts": [3, 1, 2], "expert_rank": RANK}


@pytest.fixture(params=["sorted", "grouped_mm", "loop"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Nothing stands in for it: that would be logged, and is an error here."""
    monkeypatch.setattr(implementations, "_tell_once", pytest.fail)
    name: str = request.param
    return name


def full_copy(layer: MoeLayer, family: str = "llama") -> MoeLayer:
    """A mixture of the same base and router whose experts are W + scaling B A."""
    plan = layer.plans["default"]
    full = make_layer(plan.num_experts, layer.topk["default"], family)
    full.load_state_dict(layer.state_dict(), strict=False)
    with torch.no_grad():
        for name in layer.family.projections:
            base = getattr(layer.base_layer, name)
            down, up = (getattr(layer, f"moe_{name}_lora_{part}")["default"] for part in "AB")
            getattr(full, f"moe_{name}")["default"].copy_(base.weight + layer.scaling["default"] * up @ down)
            if base.bias is not None:
                getattr(full, f"moe_{name}_bias")["default"].copy_(base.bias.expand(plan.num_new_experts, -1))
    return full


def by_chain_rule(layer: MoeLayer, full: Results) -> Results:
    """The gradients that a full copy's are for A and B: scaling B^T dW, and scaling dW A^T."""
    found = {name: full[name] for name in ("output", "input", "moe_router.default.weight")}
    for name in layer.family.projections:
        gradient, scaling = full[f"moe_{name}.default"], layer.scaling["default"]
        down, up = (getattr(layer, f"moe_{name}_lora_{part}")["default"].detach() for part in "AB")
        found[f"moe_{name}_lora_A.default"] = scaling * up.mT @ gradient
        found[f"moe_{name}_lora_B.default"] = scaling * gradient @ down.mT
    return found


@pytest.mark.parametrize(("num_experts", "topk"), [(2, 1), (2, 2), (4, 1), (4, 3), (24, 2)])
def test_output_and_gradients_are_those_of_full_copies(implementation: str, num_experts: int, topk: int) -> None:
    layer, states = make_layer(num_experts, topk, expert_rank=RANK), hidden_states(3, 17)
    assert_same(run(layer, states, implementation), by_chain_rule(layer, run(full_copy(layer), states, "loop")))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(implementation: str, family: str) -> None:
    layer, states = make_layer(family=family, expert_rank=RANK), hidden_states(2, 11)
    assert_same(run(layer, states, implementation), by_chain_rule(layer, run(full_copy(layer, family), states, "loop")))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"old_num_experts": 2}, id="kept experts"),
        pytest.param({"old_num_experts": 2, "group_nums": 3, "topk": 3}, id="choices that are not used"),
        pytest.param({"adapter_dtype": "float32"}, id="another dtype than the base's"),
    ],
)
@pytest.mark.parametrize("fast", ["sorted", "grouped_mm"])
def test_computes_what_the_loop_does(fast: str, options: dict[str, Any]) -> None:
    layer, states = make_layer(4, **{"topk": 2, **options}, expert_rank=RANK), hidden_states(8, 5)
    tolerances = (1e-6, 1e-5)
    if "adapter_dtype" in options:
        layer.base_layer.bfloat16()
        states, tolerances = states.bfloat16(), (2**-7, 2**-6)
    assert_same(run(layer, states, fast), run(layer, states, "loop"), *tolerances)


@pytest.mark.parametrize("fast", ["sorted", "grouped_mm"])
def test_autocast(fast: str) -> None:
    layer, states = make_layer(6, expert_rank=RANK), hidden_states(4, 9)

    def under_autocast(states: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            output: torch.Tensor = layer(states)
            return output

    found, expected = (run(layer, states, name, under_autocast) for name in (fast, "loop"))
    assert_same(found, expected, forward=2**-6, gradient=2**-5)


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_few_tokens(implementation: str, tokens: int) -> None:
    layer, states = make_layer(8, expert_rank=RANK), hidden_states(1, tokens)
    found = run(layer, states, implementation)
    assert found["output"].shape == (1, tokens, HIDDEN)
    assert len(found) == 9, "every expert has a gradient"


def test_an_mlp_that_does_more_after_its_last_projection(implementation: str) -> None:
    layer, states = make_layer(4, expert_rank=RANK), hidden_states(2, 9)

    def doubled(states: torch.Tensor, linear: Any, act_fn: Any) -> torch.Tensor:
        gated = act_fn(linear("gate_proj", states)) * linear("up_proj", states)
        return 2 * linear("down_proj", gated)

    expected = run(layer, states, implementation)["output"]
    layer.family = FeedForwardFamily(layer.family.projections, layer.family.activation, doubled)
    layer.ends_in_projection = False
    layer.base_layer.down_proj.register_forward_hook(lambda *call: call[-1])
    layer.base_layer.register_forward_hook(lambda *call: 2 * call[-1])
    torch.testing.assert_close(run(layer, states, implementation)["output"], 2 * expected)


def test_the_bases_products_are_computed_once_per_token() -> None:
    """Of n tokens; each of the m choices of an expert costs 2 m r (in + out) per projection.

    The counter leaves out `addmm_`, by which gate and up get what B gives.
    """
    layer, states = make_layer(4, topk=3, expert_rank=RANK), hidden_states(2, 10)
    layer.experts_implementation["default"] = "sorted"
    choices = int((layer.route_tokens(states)[2] != 0).sum())
    with FlopCounterMode(display=False) as flops:
        layer(states)
    of_base = 20 * 3 * 2 * HIDDEN * INTERMEDIATE
    of_deltas = 2 * choices * RANK * (3 * (HIDDEN + INTERMEDIATE) - 2 * INTERMEDIATE)
    assert flops.get_total_flops() == of_base + of_deltas + 2 * 20 * HIDDEN * 4


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_new_mixture_equals_the_base(family: str, batch: dict[str, torch.Tensor]) -> None:
    expected = logits(tiny_model(family), batch)
    model = get_peft_model(tiny_model(family), moe_config(**OPTIONS))
    torch.testing.assert_close(logits(model, batch), expected, atol=1e-5, rtol=1e-5)
    added = sum(p.numel() for name, p in model.named_parameters() if "_lora_" in name)
    linears = [m for m in model.base_model.model.modules() if isinstance(m, torch.nn.Linear) and _is_of_mlp(m)]
    per_layer = RANK * sum(linear.in_features + linear.out_features for linear in linears) // 3
    assert added == 3 * per_layer, "two experts in the first layer, one in the last"


def _is_of_mlp(linear: torch.nn.Linear) -> bool:
    return {linear.in_features, linear.out_features} == {HIDDEN, INTERMEDIATE}


@pytest.mark.parametrize("options", [OPTIONS, GROUPS | {"expert_rank": [2, 1, 4], "lora_alpha": 3, "use_rslora": True}])
def test_saved_and_loaded(options: dict[str, Any], batch: dict[str, torch.Tensor], tmp_path: Path) -> None:
    model = randomised(get_peft_model(tiny_model(), moe_config(**options)))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert logits(loaded, batch).equal(logits(model, batch))
    with pytest.raises(UserError, match="in a wrong shape"):
        PeftModel.from_pretrained(tiny_model(), tmp_path, config=moe_config(**options | {"expert_rank": 3}))
    full = {name: value for name, value in options.items() if "rank" not in name and "lora" not in name}
    with pytest.raises(UserError, match="lacks"):
        PeftModel.from_pretrained(tiny_model(), tmp_path, config=moe_config(**full))


@pytest.mark.parametrize(("rank", "alpha"), [(RANK, 16), ([2, 1, 4], [8, 4, 16])], ids=["one rank", "ranks"])
def test_a_saved_adapter_stays_when_the_default_scale_changes(
    rank: Any, alpha: Any, batch: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = randomised(get_peft_model(tiny_model(), moe_config(**OPTIONS | {"expert_rank": rank})))
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    saved = json.loads(file.read_text())
    assert saved["lora_alpha"] == alpha
    file.write_text(json.dumps(saved | {"lora_alpha": None}))
    assert logits(PeftModel.from_pretrained(tiny_model(), tmp_path), batch).equal(logits(model, batch)), "of earlier"
    file.write_text(json.dumps(saved))
    monkeypatch.setattr(config, "DEFAULT_SCALE", 3)
    assert logits(PeftModel.from_pretrained(tiny_model(), tmp_path), batch).equal(logits(model, batch))


def test_an_alpha_of_each_layer() -> None:
    plans = MoeConfig(num_experts=2, expert_rank=4, lora_alpha=[4, 8, 2], use_rslora=True).layer_plans(3)
    assert [plan.scaling for plan in plans.values()] == [2, 4, 1]


def test_an_extension_keeps_the_old_experts(batch: dict[str, torch.Tensor], tmp_path: Path) -> None:
    randomised(get_peft_model(tiny_model(), moe_config(num_experts=2, expert_rank=RANK))).save_pretrained(tmp_path)
    config = moe_config(num_experts=[4, 2, 3], old_num_experts=2, expert_rank=RANK)
    model = PeftModel.from_pretrained(tiny_model(), tmp_path, config=config, is_trainable=True)
    first = model.base_model.model.model.layers[0].mlp
    assert first.moe_old_up_proj_lora_B["default"].any(), "as it was saved"
    assert not first.moe_up_proj_lora_B["default"].any(), "two that equal the base"
    assert first.moe_up_proj_lora_A["default"].std() > 0
    model.train()(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert not any("moe_old_" in name for name in trained)
    assert any("layers.0.mlp.moe_down_proj_lora_B" in name for name in trained)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expert_rank": 0}, "expert_rank must be an integer of at least 1"),
        ({"expert_rank": [4, 4]}, "expert_rank has 2 entries, but 3 of the model's 3 layers"),
        ({"expert_rank": 17}, "expert_rank is 17, but gate_proj is 24 x 16: give at most 16, or no rank"),
        ({"lora_alpha": 8}, "lora_alpha must be above 0 and needs expert_rank; got 8"),
        ({"expert_rank": 4, "lora_alpha": 0}, "lora_alpha must be above 0 and needs expert_rank; got 0"),
        ({"expert_rank": 4, "lora_alpha": [8, 0, 8]}, r"lora_alpha must be above 0 and needs .*; got \[8, 0, 8\]"),
        ({"expert_rank": 4, "lora_alpha": [8, 8]}, "lora_alpha has 2 entries, but 3 of the model's 3 layers"),
        ({"use_rslora": True}, "use_rslora has no effect without expert_rank"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(tiny_model(), moe_config(num_experts=2, **options))


def test_the_published_format_has_none(tmp_path: Path) -> None:
    get_peft_model(tiny_model(), MoeConfig(**OPTIONS)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="full copies of the MLP alone: expert_rank is 4"):
        convert(tmp_path / "adapter", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()
