"""What a kind of MLP needs to say about itself to become a mixture; imports no torch, so that plugins stay light."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


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
    forward: Callable[[Any, Projection, Callable[[Any], Any]], Any]

    def __str__(self) -> str:
        return f"{', '.join(self.projections)} and {self.activation}"
