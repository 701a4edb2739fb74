"""Finds a model's MLPs by the families that plugins know; imports torch when it looks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuronmoe_plugins.feed_forward.family import FeedForwardFamily, feed_forward_families

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class FeedForward:
    """Where a decoder layer's MLP is, and of which family."""

    name: str
    family: FeedForwardFamily


def find_feed_forwards(model: nn.Module) -> dict[int, FeedForward]:
    """Find the MLP of every decoder layer.

    Args:
        model: A causal LM of transformers, or any module with numbered layers, with or without mixtures already in it.

    Returns:
        Layer index -> MLP, in order of the layers.

    Raises:
        ValueError: if no family of MLPs is found exactly once in every decoder layer.
    """
    families = feed_forward_families()
    candidates: dict[tuple[str, str], dict[int, FeedForward]] = defaultdict(dict)
    for name, module in _decoder_modules(model).items():
        parts = name.split(".")
        # A direct child of a numbered layer: the experts of a model that is already a mixture lie deeper.
        if len(parts) < 2 or not parts[-2].isdigit() or sum(part.isdigit() for part in parts) != 1:
            continue
        block = without_adapter(module)
        for family_name, family in families.items():
            if matches(block, family):
                pattern = ".".join([*parts[:-2], "*", parts[-1]])
                candidates[family_name, pattern][int(parts[-2])] = FeedForward(name, family)
    config: Any = getattr(model, "config", None)
    expected = config.get_text_config().num_hidden_layers if hasattr(config, "get_text_config") else None
    complete = [
        found
        for found in candidates.values()
        if sorted(found) == list(range(len(found) if expected is None else expected))
    ]
    if len(complete) != 1:
        kind = f" ({config.model_type})" if hasattr(config, "model_type") else ""
        layers = "numbered layers" if expected is None else f"{expected} decoder layers"
        looked_for = "; ".join(f"{name} (a module with {family})" for name, family in families.items())
        found = ", ".join(f"{len(found)} of {pattern} ({name})" for (name, pattern), found in candidates.items())
        raise ValueError(
            f"{type(model).__name__}{kind} has no MLP that can become a mixture. Looked in each of its {layers} "
            f"for one of: {looked_for}; found {found or 'none'}. A model that already "
            "is a mixture of experts cannot be extended; another kind of MLP can be added by a plugin"
        )
    return dict(sorted(complete[0].items()))


def _decoder_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The text decoder's modules by their name in `model`; a vision tower's layers look the same."""
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else model
    modules = dict(model.named_modules())
    prefix = next((name for name, module in modules.items() if module is decoder), "")
    return {name: module for name, module in modules.items() if name.startswith(prefix)}


def without_adapter(module: nn.Module) -> nn.Module:
    """What a PEFT layer wraps, or the module itself."""
    get_base_layer = getattr(module, "get_base_layer", None)
    return get_base_layer() if callable(get_base_layer) else module


def linear_names(module: nn.Module) -> set[str]:
    """Names of the linear layers directly in `module`."""
    from torch import nn

    return {name for name, child in module.named_children() if isinstance(without_adapter(child), nn.Linear)}


def matches(module: nn.Module, family: FeedForwardFamily) -> bool:
    """Whether `module` has exactly the family's linear layers and its activation function."""
    return linear_names(module) == set(family.projections) and callable(getattr(module, family.activation, None))
