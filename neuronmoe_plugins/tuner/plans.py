"""What each decoder layer becomes: experts, those that are kept, and language groups, by counts per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LayerPlan:
    """One layer's mixture.

    Attributes:
        num_experts: Experts, the base MLP included; at least 2.
        num_old_experts: Those of them that sequences of group 1 may use: the base and what an earlier extension added.
            None where nothing was said about it.
        num_frozen: Those of them that are kept as they are, with their router rows; 1, the base, in a first extension.
        num_groups: Language groups that the layer's classifier tells apart; 0 without one.
        expert_rank: Rank of the experts beside the base; None where they are copies of it.
        scaling: What their deltas are multiplied by.
    """

    num_experts: int
    num_old_experts: int | None = None
    num_frozen: int = 1
    num_groups: int = 0
    expert_rank: int | None = None
    scaling: float = 1.0

    @property
    def num_first_experts(self) -> int:
        """Experts of sequences of group 1; all where nothing was said about old ones."""
        return self.num_experts if self.num_old_experts is None else self.num_old_experts

    @property
    def num_kept_experts(self) -> int:
        """Experts beside the base that are kept frozen."""
        return self.num_frozen - 1

    @property
    def num_new_experts(self) -> int:
        """Experts beside the base that are trained."""
        return self.num_experts - self.num_frozen

    @property
    def num_kept_rows(self) -> int:
        """Router rows that are kept frozen; a layer that was dense had no router."""
        return self.num_frozen if self.num_frozen > 1 else 0


def transformed_layers(layers_to_transform: int | Sequence[int] | None, num_layers: int) -> list[int]:
    """Indices of the layers to transform.

    Raises:
        ValueError: if the model lacks one of them.
    """
    if layers_to_transform is None:
        return list(range(num_layers))
    layers = [layers_to_transform] if isinstance(layers_to_transform, int) else list(layers_to_transform)
    unknown = [layer for layer in layers if not 0 <= layer < num_layers]
    if unknown:
        raise ValueError(f"layers_to_transform names layers {unknown}, but the model has layers 0..{num_layers - 1}")
    return layers


def per_layer(name: str, value: int | Sequence[int], layers: list[int], num_layers: int) -> dict[int, int]:
    """Spread a count over the layers.

    Args:
        name: The field, for the error.
        value: One count for all, one per entry of `layers`, or one per layer of the model.
        layers: Indices of the transformed layers.
        num_layers: Layers of the model.

    Returns:
        Layer index -> count, for the layers in `layers`.

    Raises:
        ValueError: if the list has another length.
    """
    if isinstance(value, int):
        return dict.fromkeys(layers, value)
    if len(value) == len(layers):
        return dict(zip(layers, value, strict=True))
    if len(value) == num_layers:
        return {layer: value[layer] for layer in layers}
    raise ValueError(
        f"{name} has {len(value)} entries, but {len(layers)} of the model's {num_layers} layers are transformed: give "
        "one count per layer"
    )


def make_plans(
    num_experts: dict[int, int],
    num_old_experts: dict[int, int] | None,
    num_groups: dict[int, int],
    low_rank: dict[int, tuple[int, float]] | None,
) -> dict[int, LayerPlan]:
    """Put the counts per layer together; layers with one expert stay dense and are left out.

    Experts are frozen only by an extension: where old and new counts agree in every layer, nothing is added, and all
    of them can be trained (as in the second stage, when the routers relearn).

    Args:
        num_experts: Of each layer.
        num_old_experts: Of each layer of the adapter that is extended, if there is one.
        num_groups: Of each layer.
        low_rank: The rank of each layer's experts and their scaling; None for copies.

    Raises:
        ValueError: if a layer would lose experts, or every layer would stay dense.
    """
    old, shapes = num_old_experts or {}, low_rank or {}
    shrunk = [layer for layer, count in num_experts.items() if old.get(layer, 1) > count]
    if shrunk:
        raise ValueError(f"old_num_experts is above num_experts in layers {shrunk}: an extension only adds experts")
    extends = any(num_experts[layer] > count for layer, count in old.items())
    plans = {
        layer: LayerPlan(
            count,
            old.get(layer),
            old[layer] if extends else 1,
            num_groups.get(layer, 0),
            *shapes.get(layer, (None, 1.0)),
        )
        for layer, count in num_experts.items()
        if count > 1
    }
    if not plans:
        raise ValueError("num_experts is 1 in every layer: there is no mixture to train")
    if any(num_groups.values()) and not any(plan.num_groups for plan in plans.values()):
        raise ValueError("group_nums gives a classifier only to layers that stay dense")
    return plans


def are_counts(value: Any, least: int) -> bool:
    """Whether a value is an integer of at least `least`, or a list of such integers."""
    counts = value if isinstance(value, list | tuple) else [value]
    return bool(counts) and all(type(count) is int and count >= least for count in counts)
