"""One mixture layer against the dense computation of all experts."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from neuronmoe_plugins.tuner import MoeConfig, MoeLayer
from tuner.tiny import tiny_model


def perturbed_layer(num_experts: int, topk: int) -> MoeLayer:
    """A mixture whose experts differ from each other."""
    config = MoeConfig(task_type="CAUSAL_LM", num_experts=num_experts, topk=topk, layers_to_transform=[1])
    layer = get_peft_model(tiny_model(), config).base_model.model.model.layers[1].mlp
    generator = torch.Generator().manual_seed(2)
    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return layer


def dense_reference(layer: MoeLayer, hidden_states: torch.Tensor, topk: int) -> torch.Tensor:
    """Every expert on every token, mixed with the weights of the chosen ones."""
    gate, up, down = (getattr(layer, f"moe_{name}")["default"] for name in ("gate_proj", "up_proj", "down_proj"))
    outputs = [layer.base_layer(hidden_states)]
    for e in range(gate.shape[0]):
        inner = torch.nn.functional.silu(hidden_states @ gate[e].T) * (hidden_states @ up[e].T)
        outputs.append(inner @ down[e].T)
    probabilities = torch.softmax(hidden_states @ layer.moe_router["default"].weight.T, dim=-1)
    chosen = probabilities >= probabilities.topk(topk, dim=-1).values[..., -1:]
    weights = probabilities * chosen
    if topk > 1:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return torch.einsum("...e,e...h->...h", weights, torch.stack(outputs))


@pytest.mark.parametrize(("num_experts", "topk"), [(2, 1), (2, 2), (4, 1), (4, 2), (4, 3), (8, 2)])
def test_output_and_gradients_equal_the_dense_reference(num_experts: int, topk: int) -> None:
    layer = perturbed_layer(num_experts, topk)
    hidden_states = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(3))
    target = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(4))
    gradients = []
    for forward in (layer, lambda x: dense_reference(layer, x, topk)):
        x = hidden_states.clone().requires_grad_(True)
        layer.zero_grad()
        output = forward(x)
        (output * target).sum().backward()
        trained = {name: p.grad.clone() for name, p in layer.named_parameters() if p.requires_grad}
        gradients.append((output.detach(), x.grad, trained))
    (output, x_grad, trained), (expected, expected_x_grad, expected_trained) = gradients
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x_grad, expected_x_grad, atol=1e-5, rtol=1e-5)
    assert trained.keys() == expected_trained.keys()
    for name, gradient in trained.items():
        torch.testing.assert_close(gradient, expected_trained[name], atol=1e-5, rtol=1e-5, msg=name)


def test_topk_is_clamped_to_the_number_of_experts() -> None:
    hidden_states = torch.randn(5, 16, generator=torch.Generator().manual_seed(5))
    clamped, full = perturbed_layer(2, 3), perturbed_layer(2, 2)
    full.load_state_dict(clamped.state_dict())
    torch.testing.assert_close(clamped(hidden_states), full(hidden_states))


def test_every_expert_has_a_gradient_when_no_token_chooses_it() -> None:
    layer = perturbed_layer(4, 1)
    with torch.no_grad():
        layer.moe_router["default"].weight.zero_()
        layer.moe_router["default"].weight[0] = 100.0
    layer(torch.ones(6, 16)).sum().backward()
    gradients = {name: p.grad for name, p in layer.named_parameters() if p.requires_grad}
    assert len(gradients) == 4
    assert all(gradient is not None for gradient in gradients.values())
    assert all(not gradient.any() for name, gradient in gradients.items() if "proj" in name)


def test_the_frozen_base_mlp_holds_no_gradient() -> None:
    layer = perturbed_layer(3, 2)
    layer(torch.randn(6, 16)).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in layer.base_layer.parameters())
