"""Mixture layers to run in several ways, and what came out of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import get_peft_model

from neuronmoe_plugins.tuner import MoeConfig, MoeLayer
from tuner.tiny import randomised, tiny_model

HIDDEN, INTERMEDIATE = 16, 24

Results = dict[str, torch.Tensor]


def make_layer(num_experts: int = 4, topk: int = 2, family: str = "llama", **options: Any) -> MoeLayer:
    """A mixture whose experts differ from each other."""
    config = MoeConfig(task_type="CAUSAL_LM", num_experts=num_experts, topk=topk, layers_to_transform=[1], **options)
    model = randomised(get_peft_model(tiny_model(family), config))
    return next(module for module in model.modules() if isinstance(module, MoeLayer))


def hidden_states(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(3)).to(dtype)


def run(layer: MoeLayer, states: torch.Tensor, implementation: str, call: Callable[..., Any] | None = None) -> Results:
    """Output and all gradients."""
    name = implementation.partition(",")[0]
    layer.experts_implementation = dict.fromkeys(layer.experts_implementation, name)
    layer.zero_grad()
    states = states.clone().requires_grad_(True)
    output = (layer if call is None else call)(states)
    target = torch.randn(output.shape, generator=torch.Generator().manual_seed(4)).to(output.dtype)
    (output * target).sum().backward()
    gradients = {name: p.grad.clone() for name, p in layer.named_parameters() if p.requires_grad and p.grad is not None}
    assert states.grad is not None
    return {"output": output.detach(), "input": states.grad, **gradients}


def assert_same(found: Results, expected: Results, forward: float = 1e-6, gradient: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        tolerance = forward if name == "output" else gradient
        assert value.dtype == expected[name].dtype
        scale = max(1.0, float(expected[name].abs().max())) if expected[name].numel() else 1.0
        torch.testing.assert_close(value, expected[name], atol=tolerance * scale, rtol=tolerance, msg=name)
