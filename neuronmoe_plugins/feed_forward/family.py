"""What a kind of MLP says about itself to become a mixture, and the kinds that come with the package, without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from neuronmoe_plugins.plugins import registered

Activation = Callable[[Any], Any]


class Projection(Protocol):
    """One expert's linear layers: a name and (tokens, in) in, (tokens, out) out, bias included."""

    def __call__(self, name: str, hidden_states: Any, /) -> Any: ...


@dataclass(frozen=True)
class FeedForwardFamily:
    """A kind of MLP: how it is found, copied and run.

    An MLP belongs to the family if its linear layers are exactly `projections` and it has a callable `activation`. The
    weights of those layers, and the biases of those that have one, are what an expert copies. Before a mixture is made,
    `forward` is compared with the MLP's own output, so that a module that only looks like the family is refused.

    Attributes:
        projections: Names of the MLP's linear layers.
        activation: Name of the MLP's activation function.
        forward: Runs one expert. It gets hidden states (tokens, hidden), a function `linear(name, x)` that applies the
            expert's projection `name` to x (tokens, in), and the activation function; it returns (tokens, hidden).
    """

    projections: tuple[str, ...]
    activation: str
    forward: Callable[[Any, Projection, Activation], Any]

    def __str__(self) -> str:
        return f"{', '.join(self.projections)} and {self.activation}"


def feed_forward_families() -> dict[str, FeedForwardFamily]:
    """All feed-forward families by name; raises `UserError` if plugins cannot be loaded or two have one name."""
    return dict(sorted(registered("feed-forward family").items()))


def gated(hidden_states: Any, linear: Projection, act_fn: Activation) -> Any:
    """Gated linear unit (Shazeer 2020): Llama, Mistral, Qwen2, Qwen3, Gemma, OLMo 2."""
    return linear("down_proj", act_fn(linear("gate_proj", hidden_states)) * linear("up_proj", hidden_states))


def fused_gated(hidden_states: Any, linear: Projection, act_fn: Activation) -> Any:
    """The same with gate and up in one projection, the gate first: Phi-3, GLM."""
    gate, up = linear("gate_up_proj", hidden_states).chunk(2, dim=-1)
    return linear("down_proj", up * act_fn(gate))


def two_linear(first: str, second: str, activation: str) -> FeedForwardFamily:
    """The plain MLP of two linear layers of these names."""

    def forward(hidden_states: Any, linear: Projection, act_fn: Activation) -> Any:
        return linear(second, act_fn(linear(first, hidden_states)))

    return FeedForwardFamily((first, second), activation, forward)


GATED = FeedForwardFamily(("gate_proj", "up_proj", "down_proj"), "act_fn", gated)
FUSED_GATED = FeedForwardFamily(("gate_up_proj", "down_proj"), "activation_fn", fused_gated)
GPT_NEOX = two_linear("dense_h_to_4h", "dense_4h_to_h", "act")
PHI = two_linear("fc1", "fc2", "activation_fn")
