"""Liger-Kernel: its MLPs become mixtures like those that they replace, and its patches reach the MLP in a mixture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from neuronmoe_plugins.integrations.stand_ins import Call, wrap

# Module of Liger -> the activation that its kernel fuses with the product of gate and up.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "liger_kernel.transformers.swiglu": F.silu,
    "liger_kernel.transformers.geglu": partial(F.gelu, approximate="tanh"),
}
# Attributes in which the feed-forward families look for the activation.
NAMES = ("act_fn", "activation_fn")


def name_activations(module: ModuleType) -> None:
    """Give the MLPs of a module of Liger the attribute that tells the experts' activation; their kernel has it inside.

    An MLP that computes something else is refused where its experts are made: its output is compared with theirs.
    """
    activation = staticmethod(ACTIVATIONS[module.__name__])
    for kind in vars(module).values():
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            for name in NAMES:
                if not hasattr(kind, name):
                    setattr(kind, name, activation)


def extend_patches(module: ModuleType) -> None:
    """Post-import hook of `liger_kernel.transformers.monkey_patch`, whose patches of a model replace `mlp.forward`."""
    wrap(module, {"_patch_swiglu_module(module)": _patch_mlp, "_patch_geglu_module(module)": _patch_mlp})


def _patch_mlp(call: Call) -> Any:
    """Stand in for a function that patches a `module`: a mixture's base MLP instead of it."""
    from neuronmoe_plugins.tuner import MoeLayer

    patched = call.arguments["module"]
    return call.host(module=patched.get_base_layer()) if isinstance(patched, MoeLayer) else call.host()
