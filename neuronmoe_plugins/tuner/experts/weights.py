"""Experts: an MLP's weights copied into one, stacks of them, and a layer's all, run and compared with the MLP itself.

Shapes: hidden states are (tokens, hidden); an expert's weights (out, in) and biases (out,), those of a stack
(experts, out, in) and (experts, out).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight, gather_params_ctx
from torch import nn
from torch.nn import functional as F  # noqa: N812

from neuronmoe_plugins.feed_forward.family import FeedForwardFamily, Projection
from neuronmoe_plugins.host_versions import is_fsdp_enabled

# An expert runs the same operations as the MLP that it copies; quantised kernels may round otherwise.
MAX_RELATIVE_DIFFERENCE = 1e-2


def whole_weights(module: nn.Module) -> AbstractContextManager[None]:
    """Gather a module's parameters for reading within the context, where ZeRO-3 has partitioned them.

    Every process has to enter it.
    """
    gathered: AbstractContextManager[None] = gather_params_ctx(list(module.parameters()), modifier_rank=None)
    return gathered


def loaded_weights(modules: Iterable[nn.Module], training: bool) -> AbstractContextManager[None]:
    """Bring weights that accelerate has offloaded to their device within the context.

    It does so by itself only for modules that are called.

    Args:
        modules: Those whose own weights are read without a call.
        training: Whether gradients are wanted, which offloaded weights cannot keep.

    Raises:
        ValueError: in training, or if nothing would load weights that are on the meta device.
    """
    away = [module for module in modules if any(weight.is_meta for weight in module.parameters(recurse=False))]
    if not away:
        return nullcontext()
    if training or not all(hasattr(module, "_hf_hook") for module in away):
        raise ValueError(
            "experts are on the meta device: "
            + ("offloaded weights cannot be trained" if training else "load the adapter's weights before it runs")
        )
    return _loaded(away)


@contextmanager
def _loaded(modules: list[nn.Module]) -> Iterator[None]:
    hooks: list[Any] = [module._hf_hook for module in modules]
    for module, hook in zip(modules, hooks, strict=True):
        hook.pre_forward(module)
    try:
        yield
    finally:
        for module, hook in zip(modules, hooks, strict=True):
            hook.post_forward(module, None)


def is_quantised(module: nn.Module, family: FeedForwardFamily) -> bool:
    """Whether a projection of an MLP holds something else than its weight in floating point."""
    return not all(getattr(module, name).weight.is_floating_point() for name in family.projections)


def weight_names(module: nn.Module, family: FeedForwardFamily) -> tuple[str, ...]:
    """Names of the tensors that one expert holds: a weight per projection, `{projection}_bias` where it has one."""
    biases = (f"{name}_bias" for name in family.projections if getattr(module, name).bias is not None)
    return (*family.projections, *biases)


def copy_weights(module: nn.Module, family: FeedForwardFamily) -> dict[str, torch.Tensor]:
    """The tensors of one expert that equals `module`, by :func:`weight_names`.

    Returns:
        Weights (out, in) and biases (out,), detached, those of a quantised base dequantised into its compute dtype.

    Raises:
        ValueError: if a weight is partitioned, or quantised in a way that cannot be undone.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name in family.projections:
        linear: nn.Linear = getattr(module, name)
        tensors[name] = _whole_weight(name, linear)
        if linear.bias is not None:
            tensors[f"{name}_bias"] = linear.bias.detach().to(tensors[name].dtype)
    return tensors


def _whole_weight(name: str, linear: nn.Linear) -> torch.Tensor:
    weight = linear.weight.detach()
    if weight.is_meta and getattr(getattr(linear, "_hf_hook", None), "offload", False):
        raise ValueError(f"{name} is offloaded: load the base model without offloading to make a mixture of it")
    if not weight.is_floating_point():
        weight = _dequantised(name, linear)
    if tuple(weight.shape) != (linear.out_features, linear.in_features):
        raise ValueError(
            f"{name} holds no whole weight (shape {tuple(weight.shape)}): create the adapter before the base model is "
            "sharded"
        )
    return weight


def _dequantised(name: str, linear: nn.Linear) -> torch.Tensor:
    refusal = ValueError(
        f"{name} is quantised ({type(linear).__name__}, {linear.weight.dtype}) in a way that cannot be undone: load "
        "the base model unquantised, or in 4 bits with bitsandbytes, and add the adapter before it runs"
    )
    # At the first inference bitsandbytes repacks weights for its CPU kernels, and does not restore all of them.
    if getattr(getattr(linear.weight, "quant_state", None), "packing_format_for_cpu", False):
        raise refusal
    try:
        weight = dequantize_module_weight(linear).detach()
    except Exception as error:  # whatever a quantisation library raises
        raise refusal from error
    if not weight.is_floating_point():
        raise refusal
    return weight.to(getattr(linear, "compute_dtype", None) or weight.dtype)


def weights_are_loaded() -> bool:
    """With FSDP's cpu_ram_efficient_loading, the first process of a machine alone loads the base, for all of them."""
    return not is_fsdp_enabled() or os.environ.get("LOCAL_RANK") == "0"


def run_expert(
    hidden_states: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    family: FeedForwardFamily,
    act_fn: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Run one expert in its own dtype on hidden states (tokens, hidden); `weights` by :func:`weight_names`."""
    dtype = weights[family.projections[0]].dtype
    output: torch.Tensor = family.forward(hidden_states.to(dtype), partial(apply_projection, weights), act_fn)
    return output


def apply_projection(weights: Mapping[str, torch.Tensor], name: str, inputs: torch.Tensor) -> torch.Tensor:
    """Apply one projection of an expert, (tokens, in) to (tokens, out); `weights` by :func:`weight_names`."""
    return F.linear(inputs.to(weights[name].dtype), weights[name], weights.get(f"{name}_bias"))


def check_family_computes(module: nn.Module, family: FeedForwardFamily, weights: Mapping[str, torch.Tensor]) -> None:
    """Compare the family's forward with the module's on a few random tokens.

    Raises:
        ValueError: if they differ, so that copies of the weights would not be copies of the MLP.
    """
    weight = weights[family.projections[0]]
    if weight.is_meta or not weights_are_loaded():
        return
    generator = torch.Generator().manual_seed(0)
    # With a gradient: bitsandbytes repacks weights in an inference.
    tokens = torch.randn(4, weight.shape[1], generator=generator).to(weight).requires_grad_(True)
    with torch.enable_grad():
        expected = module(tokens).detach()
        difference = run_expert(tokens, weights, family, getattr(module, family.activation)).detach() - expected
    if difference.norm() <= MAX_RELATIVE_DIFFERENCE * expected.norm():
        return
    if is_quantised(module, family):
        raise ValueError(
            f"the dequantised weights of a {type(module).__name__} do not give its output: load the base model "
            "unquantised, or in 4 bits with bitsandbytes"
        )
    raise ValueError(
        f"{type(module).__name__} has the layers {family}, but computes something else with them: it needs a "
        "feed-forward family of its own"
    )


Expert = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ExpertStack:
    """Consecutive experts whose weights are stacked.

    Attributes:
        weights: By :func:`~neuronmoe_plugins.tuner.experts.weights.weight_names`: (experts, out, in), biases
            (experts, out).
    """

    weights: Mapping[str, torch.Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    @property
    def is_trained(self) -> bool:
        """Whether a backward pass will need the gradients of these experts."""
        return torch.is_grad_enabled() and any(weight.requires_grad for weight in self.weights.values())

    def unbind(self) -> Iterator[dict[str, torch.Tensor]]:
        """The tensors of each expert."""
        # Not by indexing: the backward of `weight[e]` would make a full-size zero tensor for every expert.
        for tensors in zip(*(weight.unbind(0) for weight in self.weights.values()), strict=True):
            yield dict(zip(self.weights, tensors, strict=True))


@dataclass(frozen=True)
class LayerExperts:
    """Expert 0, the base MLP, and the others.

    Attributes:
        base_layer: The MLP.
        base_is_quantised: Whether it holds something else than its weights in floating point.
        family: What kind of MLP all experts are.
        stacks: The experts beside the base, in their order.
    """

    base_layer: nn.Module
    base_is_quantised: bool
    family: FeedForwardFamily
    stacks: tuple[ExpertStack, ...]

    def __len__(self) -> int:
        return 1 + sum(map(len, self.stacks))

    @property
    def are_away(self) -> bool:
        """Whether the weights of some of them, beside the base's, are on the meta device."""
        return any(weight.is_meta for stack in self.stacks for weight in stack.weights.values())

    @property
    def act_fn(self) -> Callable[[Any], Any]:
        """The activation function, which all experts share."""
        activation: Callable[[Any], Any] = getattr(self.base_layer, self.family.activation)
        return activation

    def run_base(self, tokens: torch.Tensor) -> torch.Tensor:
        """Expert 0 on hidden states (tokens, hidden)."""
        # Quantised kernels need not work without rows.
        return tokens if self.base_is_quantised and not len(tokens) else self.base_layer(tokens)

    def runs(self) -> Iterator[Expert]:
        """All experts one by one, the base first, as functions of hidden states (tokens, hidden)."""
        yield self.run_base
        for stack in self.stacks:
            yield from map(self.of_weights, stack.unbind())

    def of_weights(self, weights: Mapping[str, torch.Tensor]) -> Expert:
        """The expert that has these tensors."""
        return partial(run_expert, weights=weights, family=self.family, act_fn=self.act_fn)

    def run_together(self, hidden_states: torch.Tensor, linear: Projection) -> torch.Tensor:
        """Several experts on all of their hidden states (rows, hidden) at once; `linear` tells whose rows are whose."""
        output: torch.Tensor = self.family.forward(hidden_states, linear, self.act_fn)
        return output


def compute_dtype(stack: ExpertStack, name: str, device: torch.device) -> torch.dtype:
    """The dtype in which a projection is computed: its weight's, or autocast's, as for a linear layer."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return stack.weights[name].dtype


def stacked_operands(stack: ExpertStack, name: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A projection's weight (experts, out, in) and bias (experts, out) in the dtype in which it is computed."""
    dtype, bias = compute_dtype(stack, name, device), stack.weights.get(f"{name}_bias")
    return stack.weights[name].to(dtype), None if bias is None else bias.to(dtype)
