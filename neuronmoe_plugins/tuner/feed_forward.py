"""How to find, copy and run the feed-forward blocks that become experts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel


class GatedFeedForward:
    """The gated MLP of Llama and Qwen2: `down_proj(act_fn(gate_proj(x)) * up_proj(x))`, without biases."""

    name = "gated MLP"
    looked_for = "a decoder layer's child with gate_proj, up_proj and down_proj linear layers and an act_fn"
    projections = ("gate_proj", "up_proj", "down_proj")

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether `module` is such an MLP."""
        return callable(getattr(module, "act_fn", None)) and all(
            isinstance(getattr(module, name, None), nn.Linear) for name in cls.projections
        )

    @classmethod
    def weights(cls, module: nn.Module) -> dict[str, torch.Tensor]:
        """The weights to copy, projection name -> (out, in).

        Raises:
            ValueError: where a copy would not be the MLP: quantised, partitioned or biased weights.
        """
        weights: dict[str, torch.Tensor] = {}
        for name in cls.projections:
            linear: nn.Linear = getattr(module, name)
            if linear.bias is not None:
                raise ValueError(f"{name} has a bias: mixtures of MLPs with biases are not supported")
            if not linear.weight.is_floating_point():
                raise ValueError(f"{name} is quantised ({linear.weight.dtype}): load the base model unquantised")
            if tuple(linear.weight.shape) != (linear.out_features, linear.in_features):
                raise ValueError(
                    f"{name} holds no whole weight (shape {tuple(linear.weight.shape)}): create the adapter before "
                    "the base model is partitioned, or use ZeRO stage 2"
                )
            weights[name] = linear.weight.detach()
        return weights

    @staticmethod
    def activation(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        """The activation function between the projections."""
        return cast(nn.Module, module.act_fn)

    @staticmethod
    def forward(
        hidden_states: torch.Tensor,
        weights: Sequence[torch.Tensor],
        act_fn: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Run one expert on `hidden_states` (tokens, hidden); `weights` (out, in) in the order of `projections`."""
        gate_proj, up_proj, down_proj = weights
        gated = act_fn(F.linear(hidden_states, gate_proj)) * F.linear(hidden_states, up_proj)
        return F.linear(gated, down_proj)


def find_feed_forwards(model: PreTrainedModel) -> dict[int, str]:
    """Find the MLP of every decoder layer.

    Args:
        model: A causal LM of transformers, with or without mixtures already in it.

    Returns:
        Layer index -> name of the MLP within `model`, in order.

    Raises:
        ValueError: if no family of MLPs is found exactly once in every decoder layer.
    """
    candidates: dict[str, dict[int, str]] = defaultdict(dict)
    for name, module in model.named_modules():
        parts = name.split(".")
        # A direct child of a numbered layer: the experts of a model that is already a mixture lie deeper.
        if len(parts) < 2 or not parts[-2].isdigit() or sum(part.isdigit() for part in parts) != 1:
            continue
        block = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if GatedFeedForward.matches(block):
            candidates[".".join([*parts[:-2], parts[-1]])][int(parts[-2])] = name
    expected = model.config.get_text_config().num_hidden_layers
    complete = [found for found in candidates.values() if sorted(found) == list(range(expected))]
    if len(complete) != 1:
        raise ValueError(
            f"{type(model).__name__} ({model.config.model_type}) has no MLP that can become a mixture: looked in each "
            f"of its {expected} decoder layers for {GatedFeedForward.looked_for}, and found "
            + (", ".join(f"{len(found)} of {pattern}" for pattern, found in candidates.items()) or "none")
        )
    return dict(sorted(complete[0].items()))
