"""A block of a decoder layer as a mixture of experts: its router, and the parameters of its adapters.

Shapes: hidden states are (batch, sequence, hidden), tokens (batch x sequence, hidden); a weight of an expert is
(out, in), a stack of them (experts, out, in), a router's (num_experts, hidden).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F  # noqa: N812

from neuronmoe_plugins.host_versions import set_layer_adapter
from neuronmoe_plugins.tuner.config import MoeConfig
from neuronmoe_plugins.tuner.experts import wanted_implementation
from neuronmoe_plugins.tuner.experts.stacks import ExpertStack, LinearLayers, low_rank_names
from neuronmoe_plugins.tuner.experts.weights import copy_weights, loaded_weights, new_experts, whole_weights
from neuronmoe_plugins.tuner.groups import allowed_experts
from neuronmoe_plugins.tuner.plans import LayerPlan
from neuronmoe_plugins.tuner.routing import ForwardContext, LayerRouting, route

Output = TypeVar("Output")


class MixtureLayer(nn.Module, BaseTunerLayer):
    """Wraps a block of one decoder layer; what experts do in it is for subclasses to say.

    Expert 0 is the block of the base. The other experts of an adapter are stacked into one parameter per tensor that
    each of them holds, so that every expert always has a gradient, also when no token chose it. Those that an extension
    keeps frozen, and their router rows, are parameters of their own, `moe_old_*`.

    Args:
        base_layer: The block.
        family: Which of its linear layers the experts change.
        layer_index: Index of the decoder layer.
        context: What the model's layers share in a forward pass.
        weight_names: Tensors of an expert that is a full copy; none where there are no such experts.
    """

    other_param_names = ("plans", "topk", "train_only_router", "trains_classifier", "experts_implementation", "scaling")

    def __init__(
        self,
        base_layer: nn.Module,
        family: LinearLayers,
        layer_index: int,
        context: ForwardContext,
        weight_names: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.family = family
        self.layer_index = layer_index
        self.context = context
        self.weight_names = weight_names
        self.low_rank_names = low_rank_names(family)
        stacked = (*self.weight_names, *self.low_rank_names)
        for name in stacked:
            self.add_module(f"moe_{name}", nn.ParameterDict())
            self.add_module(f"moe_old_{name}", nn.ParameterDict())
        self.moe_router = nn.ModuleDict()
        self.moe_old_router = nn.ModuleDict()
        self.moe_token_classify = nn.ModuleDict()
        weights = (f"{prefix}{name}" for prefix in ("moe_", "moe_old_") for name in stacked)
        self.adapter_layer_names = (*weights, "moe_router", "moe_old_router", "moe_token_classify")
        self.plans: dict[str, LayerPlan] = {}
        self.topk: dict[str, int] = {}
        self.train_only_router: dict[str, bool] = {}
        self.trains_classifier: dict[str, bool] = {}
        self.experts_implementation: dict[str, str] = {}
        self.scaling: dict[str, float] = {}
        self.merged_adapters = []

    @property
    def block(self) -> int:
        """By what its routing is known: the index of the decoder layer, or that of the attention there."""
        return self.layer_index

    def update_layer(self, adapter_name: str, plan: LayerPlan, config: MoeConfig) -> None:
        """Add an adapter: new experts, a router and perhaps a classifier, on the base's device.

        Args:
            adapter_name: Name of the adapter.
            plan: The layer's plan in it.
            config: The adapter's configuration.
        """
        self.plans[adapter_name] = plan
        self.topk[adapter_name] = config.topk
        self.train_only_router[adapter_name] = config.train_only_router
        self.trains_classifier[adapter_name] = bool(config.classify_loss_coef)
        self.experts_implementation[adapter_name] = wanted_implementation(config.experts_implementation)
        self.scaling[adapter_name] = plan.scaling
        base_layer = self.get_base_layer()
        with whole_weights(base_layer):
            weights = copy_weights(base_layer, self.family)
            if config.adapter_dtype is not None:
                dtype = getattr(torch, config.adapter_dtype)
                weights = {name: weight.to(dtype) for name, weight in weights.items()}
            for prefix, count in (("moe_old_", plan.num_kept_experts), ("moe_", plan.num_new_experts)):
                if count:
                    for name, tensor in new_experts(weights, self.family, count, plan.expert_rank).items():
                        stacked = tensor.new_empty(tensor.shape)
                        if config.init_moe_weights:
                            stacked.copy_(tensor)
                        self._parameters_of(f"{prefix}{name}")[adapter_name] = nn.Parameter(stacked)
            self._add_router(adapter_name, plan, weights[self.family.projections[0]])

    def _add_router(self, adapter_name: str, plan: LayerPlan, weight: torch.Tensor) -> None:
        """Rows for the router, and the classifier, as a linear layer beside `weight` (out, hidden) would have them."""
        hidden = weight.shape[1]
        rows = nn.init.xavier_normal_(weight.new_empty(plan.num_experts, hidden))
        kept_rows, new_rows = rows.split([plan.num_kept_rows, plan.num_experts - plan.num_kept_rows])
        for modules, initial in ((self.moe_old_router, kept_rows), (self.moe_router, new_rows)):
            if len(initial):
                modules[adapter_name] = _linear(initial)
        if plan.num_groups:
            groups = nn.init.xavier_normal_(weight.new_empty(plan.num_groups, hidden))
            self.moe_token_classify[adapter_name] = _linear(groups)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters and mark them as trainable, but for what each of them keeps frozen."""
        set_layer_adapter(super().set_adapter, self, adapter_names, inference_mode)
        for adapter_name in self.plans:
            for name in self.frozen_names(adapter_name):
                values = getattr(self, name)
                if adapter_name in values:
                    values[adapter_name].requires_grad_(False)

    def frozen_names(self, adapter_name: str) -> list[str]:
        """Attributes whose entry for the adapter is never trained: what an extension keeps, and by configuration."""
        frozen = [name for name in self.adapter_layer_names if name.startswith("moe_old_")]
        if self.train_only_router[adapter_name]:
            frozen += [f"moe_{name}" for name in self._tensor_names(adapter_name)]
        if not self.trains_classifier[adapter_name]:
            # Its choice is not differentiable, so that nothing but its own loss would train it.
            frozen.append("moe_token_classify")
        return frozen

    def release_base(self) -> None:
        """Leave the block as it was, before it takes its place in the model again."""

    def route_tokens(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """What the active adapter's router makes of the layer's input, within a forward pass of the model.

        Args:
            hidden_states: (batch, sequence, hidden).

        Returns:
            The router's logits (tokens, num_experts), and what :func:`route` makes of them: weights (tokens, topk) and
            expert indices (tokens, topk). None if no adapter with a mixture here is active.
        """
        adapter_name = self._active_mixture()
        if adapter_name is None:
            return None
        router_logits, _, weights, selected_experts = self._route(hidden_states, adapter_name)
        return router_logits, weights, selected_experts

    def _routed(self, hidden_states: torch.Tensor, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """What :func:`route` makes of the block's input, recorded if this forward pass is."""
        forward = self.context.current
        router_logits, group_logits, weights, selected_experts = self._route(hidden_states, adapter_name)
        if forward.recording:
            forward.layers[self.block] = LayerRouting(
                router_logits,
                selected_experts,
                group_logits,
                any(router.weight.requires_grad for router in self._routers(adapter_name)),
                adapter_name,
                self.plans[adapter_name],
            )
        return weights, selected_experts

    def _route(
        self, hidden_states: torch.Tensor, adapter_name: str
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """The router's logits, the group classifier's if there is one, and what :func:`route` makes of both."""
        plan = self.plans[adapter_name]
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        # Called, not only read: whoever shards a model gathers a module's weights when it is called.
        routers = self._routers(adapter_name)
        logits = [router(tokens.to(router.weight.dtype)) for router in routers]
        router_logits = torch.cat(logits, dim=-1) if len(logits) > 1 else logits[0]
        group_logits, num_allowed = None, None
        if plan.num_groups:
            group_logits, groups = self._groups(hidden_states, adapter_name)
            num_allowed = allowed_experts(groups, plan).repeat_interleave(len(tokens) // len(groups))
        return router_logits, group_logits, *route(router_logits, self.topk[adapter_name], num_allowed)

    def _active_mixture(self) -> str | None:
        """The active adapter that has a mixture in this layer."""
        active = [name for name in self.active_adapters if name in self.plans]
        if self.disable_adapters or not active:
            return None
        if len(active) > 1:
            raise ValueError(f"moe runs one adapter at a time, but {active} are active: call set_adapter with one name")
        return active[0]

    def _routers(self, adapter_name: str) -> list[nn.Linear]:
        """The kept rows of the router and the others, as far as there are any."""
        modules = (self.moe_old_router, self.moe_router)
        return [cast(nn.Linear, module[adapter_name]) for module in modules if adapter_name in module]

    def _groups(self, hidden_states: torch.Tensor, adapter_name: str) -> tuple[torch.Tensor | None, torch.Tensor]:
        """What :meth:`~neuronmoe_plugins.tuner.groups.Groups.decide` makes of the layer's input and classifier."""
        forward, key = self.context.current, (self.block, adapter_name)
        return forward.groups.decide(key, hidden_states, forward.attention_mask, partial(self._classify, adapter_name))

    def _classify(self, adapter_name: str, states: torch.Tensor) -> torch.Tensor:
        """(batch, num_groups) float32, of each sequence's sum of states (batch, hidden)."""
        classifier = cast(nn.Linear, self.moe_token_classify[adapter_name])
        with loaded_weights([classifier], self.training and torch.is_grad_enabled()):
            return F.linear(states, classifier.weight.float())

    def _with_stacks(
        self, adapter_name: str, hidden_states: torch.Tensor, run: Callable[[tuple[ExpertStack, ...]], Output]
    ) -> Output:
        """What `run` makes of the adapter's experts on that input; those that are offloaded are loaded meanwhile."""
        stacks = self._stacks(adapter_name)
        if hidden_states.is_meta or not any(stack.is_away for stack in stacks):
            return run(stacks)
        with loaded_weights(self._expert_modules(), self.training and torch.is_grad_enabled()):
            return run(self._stacks(adapter_name))

    def _stacks(self, adapter_name: str) -> tuple[ExpertStack, ...]:
        """The adapter's experts: those that an extension keeps, and the others, as far as there are any."""
        names, stacks = self._tensor_names(adapter_name), []
        for prefix in ("moe_old_", "moe_"):
            weights = {name: self._parameters_of(f"{prefix}{name}") for name in names}
            if adapter_name in weights[names[0]]:
                tensors = {name: stacked[adapter_name] for name, stacked in weights.items()}
                stacks.append(ExpertStack(tensors, self.scaling[adapter_name]))
        return tuple(stacks)

    def _tensor_names(self, adapter_name: str) -> tuple[str, ...]:
        """Names of the tensors that one of the adapter's experts has."""
        return self.weight_names if self.plans[adapter_name].expert_rank is None else self.low_rank_names

    def _expert_modules(self) -> Iterator[nn.Module]:
        """What holds the experts' weights, which are read without a call."""
        for name in (*self.weight_names, *self.low_rank_names):
            yield self._parameters_of(f"moe_{name}")
            yield self._parameters_of(f"moe_old_{name}")

    def _parameters_of(self, name: str) -> nn.ParameterDict:
        return cast(nn.ParameterDict, getattr(self, name))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raises ValueError: a mixture has no dense equivalent."""
        raise ValueError(MERGE_REFUSED)

    def unmerge(self) -> None:
        """Raises ValueError: there is never anything merged."""
        raise ValueError(MERGE_REFUSED)

    def __repr__(self) -> str:
        return "moe." + super().__repr__()


def _linear(weight: torch.Tensor) -> nn.Linear:
    """A linear layer without bias that holds a copy of `weight` (out, in)."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
    return linear


MERGE_REFUSED = (
    "a mixture of experts cannot be merged into its dense base model; keep the adapter and load it with "
    "PeftModel.from_pretrained (or unload() it to get the base model back)"
)
