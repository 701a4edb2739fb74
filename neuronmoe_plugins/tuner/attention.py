"""Attention as a mixture of experts: low-rank deltas on its linear layers, chosen per token.

A token's query, key, value and output are W x + sum over e of w_e scaling B_e A_e x, with the experts e and weights w_e
that the block's own router gives it: all of them are linear, so that mixing what experts give is mixing their weights.
Keys and values that a KV cache holds are those of their own tokens' experts, in a prefill as in decoding. The router
reads what the block reads, which is another state than the MLP's router sees.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from neuronmoe_plugins.blocks import AttentionFamily, attention_of
from neuronmoe_plugins.tuner.experts import added_deltas
from neuronmoe_plugins.tuner.experts.low_rank import AddedDeltas, AllDeltas
from neuronmoe_plugins.tuner.experts.stacks import Experts, ExpertStack
from neuronmoe_plugins.tuner.mixture import MixtureLayer
from neuronmoe_plugins.tuner.routing import ForwardContext, running_thread


class MoeAttention(MixtureLayer):
    """Wraps the attention of one decoder layer: expert 0 is the block, the others add low-rank deltas to its layers.

    Args:
        base_layer: The attention block.
        family: What kind it is.
        layer_index: Index of the decoder layer.
        context: What the model's layers share in a forward pass.
    """

    def __init__(
        self, base_layer: nn.Module, family: AttentionFamily, layer_index: int, context: ForwardContext
    ) -> None:
        super().__init__(base_layer, family, layer_index, context)
        # By thread; empty while no mixture runs.
        self._deltas: dict[int, AddedDeltas | AllDeltas] = {}
        self._hooks = [
            getattr(base_layer, name).register_forward_hook(partial(self._add_deltas, name))
            for name in family.projections
        ]

    @property
    def block(self) -> int:
        """By what its routing is known, beside that of the MLP."""
        return attention_of(self.layer_index)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's own forward, with what the experts add to its linear layers."""
        adapter_name = self._active_mixture()
        if adapter_name is None:
            return self.base_layer(*args, **kwargs)
        hidden_states = args[0] if args else kwargs["hidden_states"]
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        weights, selected_experts = self._routed(hidden_states, adapter_name)
        implementation = self.experts_implementation[adapter_name]

        def attend(stacks: tuple[ExpertStack, ...]) -> Any:
            thread = running_thread()
            self._deltas[thread] = added_deltas(implementation, tokens, weights, selected_experts, Experts(stacks))
            try:
                return self.base_layer(*args, **kwargs)
            finally:
                del self._deltas[thread]

        return self._with_stacks(adapter_name, hidden_states, attend)

    def _add_deltas(
        self, name: str, linear: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor
    ) -> torch.Tensor:
        deltas = self._deltas.get(running_thread())
        return output if deltas is None else deltas(name, args[0], output)

    def release_base(self) -> None:
        """Take the hooks off the block."""
        for hook in self._hooks:
            hook.remove()

    def __getattr__(self, name: str) -> Any:
        """What the host asks an attention block for, such as `is_sliding`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "base_layer" not in self._modules:
                raise
            return getattr(self._modules["base_layer"], name)
