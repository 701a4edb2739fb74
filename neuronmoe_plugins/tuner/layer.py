"""One MLP as a mixture of experts: the frozen original, and its trainable copies or low-rank deltas on it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from neuronmoe_plugins.feed_forward.family import FeedForwardFamily, Projection
from neuronmoe_plugins.tuner.experts import run_experts
from neuronmoe_plugins.tuner.experts.stacks import ExpertStack, LayerExperts
from neuronmoe_plugins.tuner.experts.weights import (
    check_family_computes,
    copy_weights,
    is_quantised,
    returns_last_projection,
    weight_names,
    whole_weights,
)
from neuronmoe_plugins.tuner.mixture import MixtureLayer
from neuronmoe_plugins.tuner.routing import ForwardContext


class MoeLayer(MixtureLayer):
    """Wraps the MLP of one decoder layer: expert 0 is the MLP, the others run in its place on tokens of their own.

    Args:
        base_layer: The MLP.
        family: What kind it is.
        layer_index: Index of the decoder layer.
        context: What the model's layers share in a forward pass.

    Raises:
        ValueError: if the MLP computes something else than its family does.
    """

    family: FeedForwardFamily

    def __init__(
        self, base_layer: nn.Module, family: FeedForwardFamily, layer_index: int, context: ForwardContext
    ) -> None:
        with whole_weights(base_layer):
            check_family_computes(base_layer, family, copy_weights(base_layer, family))
        super().__init__(base_layer, family, layer_index, context, weight_names(base_layer, family))
        self.base_is_quantised = is_quantised(base_layer, family)
        self.ends_in_projection = returns_last_projection(base_layer, family)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Mix the experts' outputs; (..., hidden) in, the same shape and dtype out."""
        adapter_name = self._active_mixture()
        if adapter_name is None:
            return self.base_layer(hidden_states, *args, **kwargs)
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        weights, selected_experts = self._routed(hidden_states, adapter_name)
        implementation = self.experts_implementation[adapter_name]

        def mix(stacks: tuple[ExpertStack, ...]) -> torch.Tensor:
            return run_experts(implementation, tokens, weights, selected_experts, self._experts(stacks))

        return self._with_stacks(adapter_name, hidden_states, mix).view_as(hidden_states)

    def expert_projections(self) -> list[Projection]:
        """The linear layers of the active adapter's experts, the base first; each casts to its expert's dtype."""
        base_layer, adapter_name = self.get_base_layer(), cast(str, self._active_mixture())

        def of_base(name: str, inputs: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = getattr(base_layer, name)(inputs)
            return output

        return [of_base, *self._experts(self._stacks(adapter_name)).projections()]

    def _experts(self, stacks: tuple[ExpertStack, ...]) -> LayerExperts:
        return LayerExperts(stacks, self.get_base_layer(), self.base_is_quantised, self.family, self.ends_in_projection)
