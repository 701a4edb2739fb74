"""Liger-Kernel: its MLPs become mixtures like those that they replace, and its patches reach the MLP in a mixture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
import wrapt
from torch import nn
from torch.nn import functional as F  # noqa: N812

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
    for name in ("_patch_swiglu_module", "_patch_geglu_module"):
        wrapt.wrap_function_wrapper(module, name, _patch_mlp)


def _patch_mlp(wrapped: Callable[..., Any], instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand in for a function whose first argument is the module to patch: a mixture's base MLP instead of it."""
    from neuronmoe_plugins.tuner import MoeLayer

    if args and isinstance(args[0], MoeLayer):
        args = (args[0].get_base_layer(), *args[1:])
    return wrapped(*args, **kwargs)
