"""The built-in feed-forward families, registered like any plugin's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neuronmoe_plugins.feed_forward.family import FeedForwardFamily, Projection
from neuronmoe_plugins.hookspecs import hookimpl

Activation = Callable[[Any], Any]


def gated(hidden_states: Any, linear: Projection, act_fn: Activation) -> Any:
    """Gated linear unit (Shazeer 2020): Llama, Mistral, Qwen2, Qwen3, Gemma, OLMo 2."""
    return linear("down_proj", act_fn(linear("gate_proj", hidden_states)) * linear("up_proj", hidden_states))


def fused_gated(hidden_states: Any, linear: Projection, act_fn: Activation) -> Any:
    """The same with gate and up in one projection, the gate first: Phi-3, GLM."""
    gate, up = linear("gate_up_proj", hidden_states).chunk(2, dim=-1)
    return linear("down_proj", up * act_fn(gate))


def two_linear(first: str, second: str) -> Callable[[Any, Projection, Activation], Any]:
    """The plain MLP of two linear layers of these names."""

    def forward(hidden_states: Any, linear: Projection, act_fn: Activation) -> Any:
        return linear(second, act_fn(linear(first, hidden_states)))

    return forward


@hookimpl
def register_feed_forward_families(register: Callable[[str, FeedForwardFamily], None]) -> None:
    """Hook: the families of Llama and its kin, of Phi-3, GPT-NeoX and Phi."""
    register("gated", FeedForwardFamily(("gate_proj", "up_proj", "down_proj"), "act_fn", gated))
    register("fused-gated", FeedForwardFamily(("gate_up_proj", "down_proj"), "activation_fn", fused_gated))
    neox = two_linear("dense_h_to_4h", "dense_4h_to_h")
    register("gpt-neox", FeedForwardFamily(("dense_h_to_4h", "dense_4h_to_h"), "act", neox))
    register("phi", FeedForwardFamily(("fc1", "fc2"), "activation_fn", two_linear("fc1", "fc2")))
