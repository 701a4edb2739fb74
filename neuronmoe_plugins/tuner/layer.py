"""One MLP as a mixture of experts: the frozen original and its trainable copies."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F  # noqa: N812

from neuronmoe_plugins.tuner.feed_forward import GatedFeedForward
from neuronmoe_plugins.tuner.routing import LayerRouting, RoutingRecorder, route


class MoeLayer(nn.Module, BaseTunerLayer):
    """Wraps the MLP of one decoder layer.

    Expert 0 is the base MLP. The other N - 1 experts of an adapter are stacked into one 3-D parameter per projection,
    (N - 1, out, in), so that every expert always has a gradient, also when no token chose it.

    Args:
        base_layer: The MLP.
        layer_index: Index of the decoder layer.
        recorder: Where the routing of each forward pass is recorded.
    """

    adapter_layer_names = ("moe_gate_proj", "moe_up_proj", "moe_down_proj", "moe_router")
    other_param_names = ("num_experts", "topk", "train_only_router")

    def __init__(self, base_layer: nn.Module, layer_index: int, recorder: RoutingRecorder) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.layer_index = layer_index
        self.recorder = recorder
        self.moe_gate_proj = nn.ParameterDict()
        self.moe_up_proj = nn.ParameterDict()
        self.moe_down_proj = nn.ParameterDict()
        self.moe_router = nn.ModuleDict()
        self.num_experts: dict[str, int] = {}
        self.topk: dict[str, int] = {}
        self.train_only_router: dict[str, bool] = {}
        self.merged_adapters = []

    def update_layer(
        self, adapter_name: str, num_experts: int, topk: int, train_only_router: bool, init_moe_weights: bool
    ) -> None:
        """Add an adapter: `num_experts` - 1 copies of the base MLP and a router, in the base's dtype and device.

        Args:
            adapter_name: Name of the adapter.
            num_experts: Experts, the base MLP included; at least 2.
            topk: Experts per token.
            train_only_router: Keep the experts frozen whenever the adapter is set.
            init_moe_weights: Copy the base's weights; otherwise leave them uninitialised.
        """
        self.num_experts[adapter_name] = num_experts
        self.topk[adapter_name] = topk
        self.train_only_router[adapter_name] = train_only_router
        base_weights = GatedFeedForward.weights(self.get_base_layer())
        for name, weight in base_weights.items():
            stacked = weight.new_empty((num_experts - 1, *weight.shape))
            if init_moe_weights:
                stacked.copy_(weight.expand_as(stacked))
            getattr(self, f"moe_{name}")[adapter_name] = nn.Parameter(stacked)
        gate = base_weights["gate_proj"]
        router = nn.Linear(gate.shape[1], num_experts, bias=False, device=gate.device, dtype=gate.dtype)
        nn.init.xavier_normal_(router.weight)
        self.moe_router[adapter_name] = router

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters and mark them as trainable, but for the experts of router-only adapters."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        for adapter_name, only_router in self.train_only_router.items():
            if only_router:
                for projection in GatedFeedForward.projections:
                    getattr(self, f"moe_{projection}")[adapter_name].requires_grad_(False)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Mix the experts' outputs; (..., hidden) in, the same shape and dtype out."""
        active = [name for name in self.active_adapters if name in self.num_experts]
        if self.disable_adapters or not active:
            return self.base_layer(hidden_states, *args, **kwargs)
        if len(active) > 1:
            raise ValueError(f"moe runs one adapter at a time, but {active} are active: call set_adapter with one name")
        adapter_name = active[0]
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        router = cast(nn.Linear, self.moe_router[adapter_name]).weight
        router_logits = F.linear(tokens.to(router.dtype), router)
        weights, selected_experts = route(router_logits, self.topk[adapter_name])
        if self.recorder.active:
            self.recorder.layers[self.layer_index] = LayerRouting(
                router_logits, selected_experts, router.requires_grad, adapter_name
            )
        return self._mix(tokens, weights, selected_experts, adapter_name).view_as(hidden_states)

    def _mix(
        self, tokens: torch.Tensor, weights: torch.Tensor, selected_experts: torch.Tensor, adapter_name: str
    ) -> torch.Tensor:
        """Run each expert once on its tokens, sorted by expert, and add the weighted outputs up.

        Args:
            tokens: (tokens, hidden).
            weights: (tokens, topk).
            selected_experts: (tokens, topk).
            adapter_name: The adapter whose experts run.

        Returns:
            (tokens, hidden) in the dtype of `tokens`.
        """
        flat = selected_experts.flatten()
        order = flat.argsort(stable=True)
        token_index = order // selected_experts.shape[1]
        counts = torch.bincount(flat, minlength=self.num_experts[adapter_name]).tolist()
        base_input, *expert_inputs = tokens[token_index].split(counts)
        outputs = [self.base_layer(base_input)]
        # unbind, not indexing: the backward of `weight[e]` would make a full-size zero tensor for every expert. Experts
        # without a token run on an empty slice, so that they too are in the graph and get a (zero) gradient.
        projections = [getattr(self, f"moe_{name}")[adapter_name] for name in GatedFeedForward.projections]
        act_fn = GatedFeedForward.activation(self.get_base_layer())
        for expert_input, *expert_weights in zip(expert_inputs, *(p.unbind(0) for p in projections), strict=True):
            expert_input = expert_input.to(expert_weights[0].dtype)
            outputs.append(GatedFeedForward.forward(expert_input, expert_weights, act_fn))
        mixed = torch.cat([output.to(tokens.dtype) for output in outputs])
        mixed = mixed * weights.flatten()[order].unsqueeze(-1).to(tokens.dtype)
        return torch.zeros_like(tokens).index_add_(0, token_index, mixed)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raises ValueError: a mixture has no dense equivalent."""
        raise ValueError(MERGE_REFUSED)

    def unmerge(self) -> None:
        """Raises ValueError: there is never anything merged."""
        raise ValueError(MERGE_REFUSED)

    def __repr__(self) -> str:
        return "moe." + super().__repr__()


MERGE_REFUSED = (
    "a mixture of experts cannot be merged into its dense base model; keep the adapter and load it with "
    "PeftModel.from_pretrained (or unload() it to get the base model back)"
)
