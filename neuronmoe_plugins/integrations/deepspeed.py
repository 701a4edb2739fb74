"""DeepSpeed ZeRO-3, which keeps a part of each parameter in every process: mixtures under it, and whole adapters."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import nn

from neuronmoe_plugins.tuner.mixture import MixtureLayer
from neuronmoe_plugins.tuner.saved_modules import is_added


def mark_leaf_modules(model: nn.Module) -> None:
    """Let ZeRO-3 fetch the parameters of a mixture layer together, when its forward or backward begins.

    They are no parameters of the modules inside the layer, whose hooks would fetch them; and which experts a process
    needs depends on its tokens, but every process has to take part in every fetch.
    """
    from deepspeed.utils import set_z3_leaf_modules

    mixtures = [module for module in model.modules() if isinstance(module, MixtureLayer)]
    set_z3_leaf_modules(model, list({type(mixture) for mixture in mixtures}))
    for mixture in mixtures:
        mixture.register_forward_pre_hook(_with_gradient, with_kwargs=True)


def name_token_rows(model: nn.Module) -> None:
    """Let ZeRO-3 fetch an embedding, or a head, and the rows that PEFT puts into it, when their layer begins.

    PEFT reads both without a call of the modules that hold them, whose hooks would fetch them.
    """
    from deepspeed.runtime.zero import register_external_parameter

    for layer in model.modules():
        if isinstance(layer, TrainableTokensLayer):
            for weight in (layer.base_layer.weight, *layer.trainable_tokens_delta.values()):
                register_external_parameter(layer, weight)


def _with_gradient(mixture: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Hand on the hidden states by place, as attention's are not given, and with a gradient, as the first layer's lack.

    ZeRO-3 takes a leaf's gradients when torch calls its backward hook, which is when those of the inputs by place are
    there; without any, before those of the parameters.
    """
    others = dict(kwargs)
    states, *more = args or (others.pop("hidden_states"),)
    if torch.is_grad_enabled() and not states.requires_grad:
        states = states.detach().requires_grad_(True)
    return (states, *more), others


def gather_frozen(model: nn.Module) -> dict[str, torch.Tensor]:
    """The frozen parameters of the model's adapters, which a ZeRO-3 checkpoint of trained parameters lacks.

    Every process has to call it.

    Args:
        model: The model, outside of DeepSpeed's engine.

    Returns:
        Name -> whole tensor in the CPU's memory; empty in all processes but the first.
    """
    from deepspeed.runtime.zero import GatheredParameters

    frozen: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not is_added(name):
            continue
        with GatheredParameters([parameter]):
            if torch.distributed.get_rank() == 0:
                frozen[name] = parameter.detach().to("cpu", copy=True)
    return frozen
