"""An MLP's weights: gathered, loaded, copied into those of an expert, and compared with what the MLP computes.

Shapes: hidden states are (tokens, hidden), weights (out, in) and biases (out,).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight, gather_params_ctx
from torch import nn
from torch._subclasses import FakeTensor

from neuronmoe_plugins.feed_forward.family import FeedForwardFamily
from neuronmoe_plugins.host_versions import is_fsdp_enabled
from neuronmoe_plugins.tuner.experts.stacks import DOWN, UP, LinearLayers, run_expert

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


def is_quantised(module: nn.Module, family: LinearLayers) -> bool:
    """Whether a projection of a block holds something else than its weight in floating point."""
    return not all(getattr(module, name).weight.is_floating_point() for name in family.projections)


def weight_names(module: nn.Module, family: LinearLayers) -> tuple[str, ...]:
    """Names of the tensors that one expert holds: a weight per projection, `{projection}_bias` where it has one."""
    biases = (f"{name}_bias" for name in family.projections if getattr(module, name).bias is not None)
    return (*family.projections, *biases)


def copy_weights(module: nn.Module, family: LinearLayers) -> dict[str, torch.Tensor]:
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


def new_experts(
    weights: Mapping[str, torch.Tensor], family: LinearLayers, count: int, rank: int | None
) -> dict[str, torch.Tensor]:
    """The stacked tensors of experts that equal the MLP with these weights.

    Args:
        weights: The MLP's, by :func:`weight_names`.
        family: What kind of MLP it is.
        count: How many experts.
        rank: Of low-rank deltas, whose A is random as in PEFT's LoRA and whose B is 0; None for copies.

    Returns:
        By :func:`weight_names`, (count, out, in) and (count, out), or by
        :func:`~neuronmoe_plugins.tuner.experts.stacks.low_rank_names`, (count, rank, in) and (count, out, rank).

    Raises:
        ValueError: if the rank is above the smaller side of a weight.
    """
    if rank is None:
        return {name: weight.expand(count, *weight.shape) for name, weight in weights.items()}
    tensors: dict[str, torch.Tensor] = {}
    for name in family.projections:
        weight = weights[name]
        check_rank(rank, name, weight.shape)
        bound = weight.shape[1] ** -0.5
        tensors[f"{name}{DOWN}"] = weight.new_empty(count, rank, weight.shape[1]).uniform_(-bound, bound)
        tensors[f"{name}{UP}"] = weight.new_zeros(count, weight.shape[0], rank)
    return tensors


def check_rank(rank: int | None, name: str, shape: Sequence[int]) -> None:
    """Raise `ValueError` if the linear layer of that name and shape (out, in) has no deltas of that rank."""
    if rank is not None and rank > min(shape):
        raise ValueError(
            f"expert_rank is {rank}, but {name} is {shape[0]} x {shape[1]}: give at most {min(shape)}, or no rank for "
            "full copies"
        )


def nearest_low_rank(delta: torch.Tensor, rank: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The low-rank delta that is nearest to a matrix in the Frobenius norm (Eckart and Young, 1936).

    Args:
        delta: (out, in).
        rank: At most the smaller side.
        scaling: What the product is multiplied by.

    Returns:
        A (rank, in) and B (out, rank), in the dtype of `delta`, with equal norms for each direction: scaling B A is
        near `delta`. Directions that `delta` does not have are like those of a new expert: in A alone, of the norm
        that a random row has there, so that they can still be trained.
    """
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    noise = values[0] * max(delta.shape) * torch.finfo(delta.dtype).eps
    roots = (torch.where(values > noise, values, 0) / scaling).sqrt()
    return right * torch.where(roots > 0, roots, 3**-0.5).unsqueeze(1), left * roots


def returns_last_projection(module: nn.Module, family: FeedForwardFamily) -> bool:
    """Whether what an MLP returns is what its last projection gives, and nothing after it."""
    outputs: dict[str, torch.Tensor] = {}

    def linear(name: str, inputs: torch.Tensor) -> torch.Tensor:
        outputs[name] = torch.empty(1, getattr(module, name).out_features, device="meta")
        return outputs[name]

    first: nn.Linear = getattr(module, family.projections[0])
    result = family.forward(
        torch.empty(1, first.in_features, device="meta"), linear, getattr(module, family.activation)
    )
    return result is outputs[family.projections[-1]]


def check_family_computes(module: nn.Module, family: FeedForwardFamily, weights: Mapping[str, torch.Tensor]) -> None:
    """Compare the family's forward with the module's on a few random tokens.

    Raises:
        ValueError: if they differ, so that copies of the weights would not be copies of the MLP.
    """
    weight = weights[family.projections[0]]
    if weight.is_meta or isinstance(weight, FakeTensor) or not weights_are_loaded():
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
