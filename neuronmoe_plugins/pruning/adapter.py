"""An adapter's file and configuration, with all of its experts or without some of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from neuronmoe_plugins.models import write_adapter
from neuronmoe_plugins.pruning.leaving_out import ADAPTER_NAME, Place
from neuronmoe_plugins.tuner.checkpoint import CLASSIFIER, mixture_layers
from neuronmoe_plugins.tuner.plans import per_layer, transformed_layers
from neuronmoe_plugins.tuner.reference_format import ROUTER, tensors_from_published

if TYPE_CHECKING:
    from torch import Tensor

    from neuronmoe_plugins.tuner import MoeConfig


@dataclass(frozen=True)
class AdapterInFile:
    """An adapter as its file has it.

    Attributes:
        tensors: Of each mixture `moe_{weight}` (num_experts - 1, ...), `moe_router.weight` (num_experts, hidden) and
            perhaps a classifier; and what is saved beside the mixtures.
        config: Its configuration.
        num_layers: Decoder layers of the base model.
        mixtures: Name of each mixture -> decoder layer and number of experts, the base included.
    """

    tensors: Mapping[str, Tensor]
    config: MoeConfig
    num_layers: int
    mixtures: Mapping[str, tuple[int, int]]

    @classmethod
    def read(cls, adapter: str, model: Any) -> AdapterInFile:
        """Read the files of an adapter, folder or hub name, that a model has been given."""
        from peft import PeftConfig, load_peft_weights

        return cls(
            # A published one by the names that it gets here.
            tensors_from_published(load_peft_weights(adapter, device="cpu")),
            cast("MoeConfig", PeftConfig.from_pretrained(adapter)),
            model.config.get_text_config().num_hidden_layers,
            {
                name: (layer.layer_index, layer.plans[ADAPTER_NAME].num_experts)
                for name, layer in mixture_layers(model, ADAPTER_NAME)
            },
        )

    def without(self, dropped: Collection[Place]) -> AdapterInFile:
        """The same adapter without some experts, and their router rows."""
        tensors, mixtures = dict(self.tensors), dict(self.mixtures)
        for name, (layer, num_experts) in self.mixtures.items():
            kept = [expert for expert in range(num_experts) if (layer, expert) not in dropped]
            for key in [key for key in tensors if key.startswith(f"{name}.moe_")]:
                if len(kept) == 1:  # the layer becomes dense
                    del tensors[key]
                elif key.endswith(ROUTER):
                    tensors[key] = tensors[key][kept]
                elif not key.endswith(CLASSIFIER):
                    tensors[key] = tensors[key][[expert - 1 for expert in kept[1:]]]
            mixtures[name] = layer, len(kept)
        return AdapterInFile(tensors, pruned_config(self.config, self.num_layers, dropped), self.num_layers, mixtures)

    @property
    def parameters(self) -> int:
        """How many there are in all tensors."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def save(self, folder: Path) -> None:
        """Write both files into a folder."""
        write_adapter(folder, self.tensors, self.config.to_dict())


def pruned_config(config: MoeConfig, num_layers: int, dropped: Collection[Place]) -> MoeConfig:
    """The configuration of an adapter without some experts.

    Of those that sequences of language group 1 may use, or that an extension kept (`old_num_experts`), as many are
    left as were not dropped. A layer that becomes dense has no classifier.

    Args:
        config: The adapter's.
        num_layers: Decoder layers of the base model.
        dropped: Layer and expert.
    """
    layers = transformed_layers(config.layers_to_transform, num_layers)

    def left(name: str, counts: int | list[int]) -> list[int]:
        """Of a layer's first so many experts those that stay, for each transformed layer."""
        before = per_layer(name, counts, layers, num_layers)
        return [sum((layer, expert) not in dropped for expert in range(before[layer])) for layer in layers]

    pruned = deepcopy(config)
    pruned.num_experts = num_experts = left("num_experts", config.num_experts)
    if config.old_num_experts is not None:
        pruned.old_num_experts = left("old_num_experts", config.old_num_experts)
    if config.group_nums is not None:
        groups = per_layer("group_nums", config.group_nums, layers, num_layers)
        counts = [groups[layer] if count > 1 else 0 for layer, count in zip(layers, num_experts, strict=True)]
        pruned.group_nums = counts if any(counts) else None
        pruned.classify_loss_coef = config.classify_loss_coef if any(counts) else None
    return pruned
