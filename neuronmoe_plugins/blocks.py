"""The parts of decoder layers that may become mixtures, their MLPs and attention: kinds, names, how they are found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from neuronmoe_plugins.feed_forward import FeedForward, linear_names, without_adapter
from neuronmoe_plugins.feed_forward.family import FeedForwardFamily

if TYPE_CHECKING:
    from torch import nn


class ExpertTargets(str, Enum):
    """What new experts of low rank change in a layer: its MLP, its attention, or both, with a router each."""

    MLP = "mlp"
    ATTENTION = "attention"
    BOTH = "both"


TARGETS = tuple(each.value for each in ExpertTargets)


@dataclass(frozen=True)
class AttentionFamily:
    """A kind of attention block: its linear layers, all of which get every token of the batch in one order."""

    projections: tuple[str, ...]


# Llama, Mistral, Qwen2, Qwen3, Gemma, OLMo 2; Phi; Phi-3, GLM; GPT-NeoX
FAMILIES = tuple(
    map(
        AttentionFamily,
        (
            ("q_proj", "k_proj", "v_proj", "o_proj"),
            ("q_proj", "k_proj", "v_proj", "dense"),
            ("qkv_proj", "o_proj"),
            ("query_key_value", "dense"),
        ),
    )
)


@dataclass(frozen=True)
class Block:
    """What becomes a mixture: its name in the model, its kind, and its decoder layer."""

    name: str
    family: FeedForwardFamily | AttentionFamily
    layer: int


def find_blocks(model: nn.Module, mlps: Mapping[int, FeedForward], targets: str) -> list[Block]:
    """The blocks of all decoder layers that may become mixtures.

    Args:
        model: The base model, with mixtures in it or without.
        mlps: Decoder layer -> its MLP.
        targets: `mlp`, `attention` or `both`.

    Raises:
        ValueError: if the attention of a layer is of no known kind.
    """
    blocks = []
    if targets != ExpertTargets.ATTENTION:
        blocks += [Block(mlp.name, mlp.family, layer) for layer, mlp in mlps.items()]
    if targets != ExpertTargets.MLP:
        blocks += [_attention(model, mlp.name.rpartition(".")[0], layer) for layer, mlp in mlps.items()]
    return blocks


def _attention(model: nn.Module, decoder_layer: str, layer: int) -> Block:
    """The attention of a decoder layer, known by its linear layers."""
    for name, child in model.get_submodule(decoder_layer).named_children():
        linears = linear_names(without_adapter(child))
        for family in FAMILIES:
            if linears == set(family.projections):
                return Block(f"{decoder_layer}.{name}", family, layer)
    known = "; ".join(", ".join(family.projections) for family in FAMILIES)
    raise ValueError(
        f"{decoder_layer} of {type(model).__name__} has no attention that can become a mixture, a module whose linear "
        f"layers are one of: {known}; choose the targets mlp"
    )


def attention_of(layer: int) -> int:
    """Under which index a layer's attention is recorded; its MLP has the layer's own."""
    return -1 - layer


def layer_of(block: int) -> int:
    """The decoder layer of a block's index."""
    return max(block, -1 - block)


def block_order(block: int) -> tuple[int, int]:
    """To sort blocks' indices by: as a forward pass meets them."""
    return layer_of(block), block


def block_name(block: int) -> str:
    """A block's index as people read it: `3` or `3 attention`."""
    return str(block) if block >= 0 else f"{layer_of(block)} attention"
