"""What experts cost in parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neuronmoe_plugins.allocation.checks import is_count, list_of, shown
from neuronmoe_plugins.errors import UserError


@dataclass(frozen=True)
class MlpShapes:
    """The sizes of a model from which added parameters follow.

    Attributes:
        hidden_size: Width of the hidden states, which the routers read.
        mlp_parameters: Weights and biases of one copy of each layer's MLP.
    """

    hidden_size: int
    mlp_parameters: list[int]

    def added_parameters(self, num_experts: Sequence[int]) -> list[int]:
        """New parameters of each layer: its copies of the MLP and, in a mixture, a router row for every expert.

        Args:
            num_experts: Experts per layer, the base MLP included; a layer with 1 stays dense and adds nothing.
        """
        return [
            (experts - 1) * copy + experts * self.hidden_size if experts > 1 else 0
            for experts, copy in zip(num_experts, self.mlp_parameters, strict=True)
        ]


def read_shapes(path: object, record: dict[str, Any], num_layers: int) -> MlpShapes | None:
    """The shapes that a JSON object names as `hidden_size` and `mlp_parameters`; None if it lacks one.

    Raises:
        UserError: naming `path` and the key that is wrong.
    """
    hidden_size, mlp_parameters = record.get("hidden_size"), record.get("mlp_parameters")
    if hidden_size is None or mlp_parameters is None:
        return None
    if not is_count(hidden_size):
        raise UserError(f"{path}: hidden_size is {shown(hidden_size)}; it must be a whole number, 1 or more")
    if not isinstance(mlp_parameters, list) or not list_of(is_count)(mlp_parameters):
        raise UserError(f"{path}: mlp_parameters must be a list of whole numbers, the parameters of each layer's MLP")
    if len(mlp_parameters) != num_layers:
        raise UserError(f"{path}: mlp_parameters has {len(mlp_parameters)} entries for {num_layers} layers")
    return MlpShapes(hidden_size, mlp_parameters)
