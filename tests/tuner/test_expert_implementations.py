"""Every implementation of the experts computes what the loop computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from neuronmoe_plugins.feed_forward.family import FeedForwardFamily
from neuronmoe_plugins.tuner import MoeConfig
from neuronmoe_plugins.tuner import experts as implementations
from neuronmoe_plugins.tuner.experts import run_one_token
from neuronmoe_plugins.tuner.experts import sorted as sorted_experts
from neuronmoe_plugins.tuner.experts.stacks import ExpertStack, LayerExperts
from neuronmoe_plugins.tuner.routing import ForwardPass
from tuner.expert_layers import HIDDEN, INTERMEDIATE, assert_same, hidden_states, make_layer, run
from tuner.tiny import FAMILIES, randomised, tiny_model

FAST = ("sorted", "sorted, one by one", "grouped_mm")


@pytest.fixture(params=FAST)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A name of :data:`FAST`; the experts of a stack are sorted together unless it says otherwise.

    Nothing stands in for it: that would be logged, and is an error here.
    """
    monkeypatch.setattr(sorted_experts, "PART_BYTES", 0 if "one by one" in request.param else 2**30)
    monkeypatch.setattr(implementations, "_tell_once", pytest.fail)
    yield request.param


@pytest.mark.parametrize(("num_experts", "topk"), [(2, 1), (2, 2), (4, 1), (4, 3), (5, 4), (24, 2), (64, 2), (64, 4)])
def test_output_and_gradients(implementation: str, num_experts: int, topk: int) -> None:
    layer, states = make_layer(num_experts, topk), hidden_states(3, 17)
    assert_same(run(layer, states, implementation), run(layer, states, "loop"))


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_few_tokens(implementation: str, tokens: int) -> None:
    layer, states = make_layer(8), hidden_states(1, tokens)
    found = run(layer, states, implementation)
    assert_same(found, run(layer, states, "loop"))
    assert found["output"].shape == (1, tokens, HIDDEN)
    assert len(found) == 6


@pytest.mark.parametrize("chosen", [0, 2])
def test_all_tokens_choose_one_expert(implementation: str, chosen: int) -> None:
    layer, states = make_layer(4, topk=1), hidden_states(2, 9).abs()
    with torch.no_grad():
        layer.moe_router["default"].weight.fill_(-1.0)
        layer.moe_router["default"].weight[chosen] = 1.0
    found = run(layer, states, implementation)
    assert_same(found, run(layer, states, "loop"))
    for name in ("moe_gate_proj.default", "moe_up_proj.default", "moe_down_proj.default"):
        used = [bool(gradient.any()) for gradient in found[name]]
        assert used == [expert == chosen for expert in (1, 2, 3)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(implementation: str, family: str) -> None:
    layer, states = make_layer(family=family), hidden_states(2, 11)
    assert_same(run(layer, states, implementation), run(layer, states, "loop"))


def test_kept_experts_and_new_ones(implementation: str, tmp_path: Any) -> None:
    first = get_peft_model(tiny_model(), MoeConfig(task_type="CAUSAL_LM", num_experts=3, layers_to_transform=[1]))
    randomised(first).save_pretrained(tmp_path)
    config = MoeConfig(
        task_type="CAUSAL_LM", num_experts=5, old_num_experts=3, topk=3, layers_to_transform=[1], init_moe_weights=True
    )
    model = PeftModel.from_pretrained(tiny_model(), tmp_path, config=config, is_trainable=True)
    layer = randomised(model, seed=5).base_model.model.model.layers[1].mlp
    states = hidden_states(2, 13)
    found = run(layer, states, implementation)
    assert_same(found, run(layer, states, "loop"))
    assert not any("moe_old_" in name for name in found)
    assert layer.moe_old_gate_proj["default"].grad is None


def test_choices_that_are_not_used(implementation: str) -> None:
    options = {"old_num_experts": 2, "group_nums": 3}
    layer, states = make_layer(4, topk=3, **options), hidden_states(8, 5)
    assert_same(run(layer, states, implementation), run(layer, states, "loop"))
    layer.context.start(ForwardPass(recording=True))
    layer(states)
    assert (layer.context.stop()[1].selected_experts == 4).any(), "some choices are unused"


def test_bfloat16(implementation: str) -> None:
    exact = run(make_layer(6), hidden_states(4, 33), "loop")
    layer, states = make_layer(6).bfloat16(), hidden_states(4, 33, dtype=torch.bfloat16)
    for name, value in run(layer, states, implementation).items():
        assert value.dtype == torch.bfloat16
        error = (value.float() - exact[name]).norm() / exact[name].norm()
        assert error < 0.05, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(implementation: str, dtype: torch.dtype) -> None:
    layer, states = make_layer(6), hidden_states(4, 9, dtype=dtype)

    def under_autocast(states: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            output: torch.Tensor = layer(states)
            return output

    found, expected = (run(layer, states, name, under_autocast) for name in (implementation, "loop"))
    # One rounding step of bfloat16, of sums in another order.
    assert_same(found, expected, forward=2**-7, gradient=2**-6)


def test_experts_of_another_dtype_than_the_base(implementation: str) -> None:
    layer = make_layer(4, adapter_dtype="float32")
    layer.base_layer.bfloat16()
    states = hidden_states(2, 9, dtype=torch.bfloat16)
    found, expected = run(layer, states, implementation), run(layer, states, "loop")
    assert_same(found, expected, forward=2**-7, gradient=2**-6)


def test_checkpointing(implementation: str) -> None:
    from torch.utils.checkpoint import checkpoint

    layer, states = make_layer(6), hidden_states(4, 9)
    found = run(layer, states, implementation, lambda x: checkpoint(layer, x, use_reentrant=False))
    assert_same(found, run(layer, states, "loop"))


def test_compiled(implementation: str) -> None:
    layer, states = make_layer(6), hidden_states(4, 9)
    expected = run(layer, states, "loop")
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager")
    if implementation == "grouped_mm":
        layer.bfloat16(), expected.update(run(layer, states.bfloat16(), "loop"))
        found = run(layer, states.bfloat16(), implementation, compiled)
        assert_same(found, expected, forward=2**-7, gradient=2**-6)
    else:
        assert_same(run(layer, states, implementation, compiled), expected)


@pytest.mark.parametrize("train_only_router", [False, True])
def test_no_gradient_of_what_is_frozen_is_computed(implementation: str, train_only_router: bool) -> None:
    """Of n rows of an expert, each of three projections costs 2 n h i, and as much again per gradient."""
    layer, states = make_layer(4, train_only_router=train_only_router), hidden_states(2, 10)
    layer.experts_implementation["default"] = "loop"
    selected = layer.route_tokens(states)[2]
    rows, of_base = selected.numel(), int((selected == 0).sum())
    layer.experts_implementation["default"] = implementation.partition(",")[0]
    with FlopCounterMode(display=False) as forward:
        output = layer(states.requires_grad_(True))
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    router = 2 * 20 * HIDDEN * 4
    projections = 3 * 2 * HIDDEN * INTERMEDIATE
    if implementation != "grouped_mm":  # Its counter counts all rows, also those that nobody computes.
        assert forward.get_total_flops() == rows * projections + router
        trained = 0 if train_only_router else rows - of_base
        assert backward.get_total_flops() == (rows + trained) * projections + 2 * router
    frozen = [name for name, p in layer.named_parameters() if p.grad is None]
    assert any("base_layer" in name for name in frozen)
    assert any("moe_up_proj" in name for name in frozen) == train_only_router


def test_inference_runs_only_experts_with_tokens() -> None:
    layer = make_layer(64)
    layer.experts_implementation["default"] = "sorted"
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        layer(hidden_states(1, 1))
    assert flops.get_total_flops() == 2 * 3 * 2 * HIDDEN * INTERMEDIATE + 2 * HIDDEN * 64


@pytest.mark.parametrize("options", [{}, {"topk": 1}, {"topk": 4}, {"old_num_experts": 2, "group_nums": 3, "topk": 3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_token_in_inference(options: dict[str, Any], dtype: torch.dtype) -> None:
    layer = make_layer(5, **options).to(dtype)
    for seed in range(8):
        torch.manual_seed(seed)
        states = torch.randn(1, 1, HIDDEN).to(dtype)
        outputs = []
        for name in ("sorted", "loop"):
            layer.experts_implementation["default"] = name
            layer.context.start(ForwardPass())
            with torch.no_grad():
                outputs.append(layer(states))
        # In bfloat16 every partial sum is rounded.
        tolerance = 1e-6 if dtype == torch.float32 else 2**-6
        torch.testing.assert_close(*outputs, atol=tolerance * float(outputs[1].abs().max()), rtol=0)


def test_one_token_of_kept_and_new_experts() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [{"w": torch.randn(count, 4, 4, generator=generator)} for count in (2, 3)]
    family = FeedForwardFamily(("w",), "act", lambda states, linear, act: linear("w", states))
    base = torch.nn.Linear(4, 4, bias=False)
    base.act = None
    experts = LayerExperts(tuple(map(ExpertStack, weights)), base, False, family)
    matrices = [base.weight.detach(), *weights[0]["w"], *weights[1]["w"]]
    token = torch.randn(1, 4, generator=generator)
    with torch.no_grad():
        for index, matrix in enumerate(matrices):
            output = run_one_token(token, torch.tensor([[0.5, 0.0]]), torch.tensor([[index, 6]]), experts)
            torch.testing.assert_close(output, 0.5 * token @ matrix.T)


def test_a_retained_graph_gives_the_gradients_again(implementation: str) -> None:
    layer, states = make_layer(4), hidden_states(2, 6)
    expected = run(layer, states, "loop")
    layer.experts_implementation["default"] = implementation.partition(",")[0]
    layer.zero_grad()
    output = layer(states)
    target = torch.randn(output.shape, generator=torch.Generator().manual_seed(4))
    for _ in range(2):
        (output * target).sum().backward(retain_graph=True)
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, 2 * expected[name], atol=1e-5, rtol=1e-5)


class Twice(torch.nn.Module):
    """An MLP that applies its one projection twice."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.act = torch.nn.Linear(16, 16, bias=False), torch.nn.Identity()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.w(self.w(states))


def test_a_projection_that_is_used_twice_has_the_sum_of_gradients(implementation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    base = Twice()
    family = FeedForwardFamily(("w",), "act", lambda states, linear, act: linear("w", linear("w", states)))
    stack = torch.randn(3, 16, 16, generator=generator).requires_grad_(True)
    experts = LayerExperts((ExpertStack({"w": stack}),), base, False, family)
    tokens, weights = torch.randn(9, 16, generator=generator), torch.rand(9, 2, generator=generator)
    selected = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(9)])
    gradients = []
    for name in (implementation.partition(",")[0], "loop"):
        stack.grad = None
        implementations.run_experts(name, tokens, weights, selected, experts).sum().backward()
        gradients.append(stack.grad)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-5)


def test_a_layer_that_is_used_twice_has_the_sum_of_gradients(implementation: str) -> None:
    layer, states = make_layer(4), hidden_states(2, 6)
    twice = [run(layer, states, name, lambda x: layer(layer(x))) for name in (implementation, "loop")]
    assert_same(*twice, forward=1e-5)
