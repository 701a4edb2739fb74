"""The published code's adapter format and this package's: all that is known about their correspondence.

Published (github.com/ynklab/NeuronMoE, and MoE-LPR and LayerMoE before it): one 2-D tensor per expert and projection,
`moe_experts.{j}.{projection}.weight` with j = 0 for the first new expert, and `moe_router_embedding.weight`. Here: all
experts stacked in `moe_{projection}`, biases in `moe_{projection}_bias`, and `moe_router.weight`. The classifier,
`moe_token_classify.weight`, is the same in both.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

import torch

from neuronmoe_plugins.errors import UserError

logger = logging.getLogger(__name__)

EXPERT = re.compile(r"(?P<layer>.*)\.moe_experts\.(?P<expert>\d+)\.(?P<projection>\w+)\.(?P<kind>weight|bias)")
STACK = re.compile(r"(?P<layer>.*)\.moe_(?P<name>\w+)")
PUBLISHED_ROUTER, ROUTER = ".moe_router_embedding.weight", ".moe_router.weight"

# Keys of the published configuration without counterpart: nothing in the published code reads the value of any of them
# but save_all_params, which saves the base's weights too.
WITHOUT_EFFECT: dict[str, Any] = {
    "dif_lbl_weights_list": None,
    "lan_tag_loss_coef": None,
    "pruned_experts_list": None,
    "save_all_params": False,
    "share_lbl_loss_coef": None,
    "spe_agn_hard_route": False,
    "spe_ori_agn_hard_route": False,
    "token_route": False,
}
SHARED = (
    *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
    *("init_moe_weights", "num_experts", "topk", "layers_to_transform", "old_num_experts", "group_nums"),
    *("aux_loss_coef", "lpr_loss_coef", "classify_loss_coef", "sequential_add_loss_coef"),
)
# What the published code takes where a count per layer says nothing about a layer.
DENSE = {"num_experts": 1, "old_num_experts": 1, "group_nums": 0}

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]
ConfigClass = TypeVar("ConfigClass", bound=type)


def is_published(tensors: Mapping[str, Any]) -> bool:
    """Whether an adapter's tensors are in the published format."""
    return any(".moe_experts." in name or name.endswith(PUBLISHED_ROUTER) for name in tensors)


def is_published_config(config: Mapping[str, Any]) -> bool:
    """Whether an adapter's configuration is a published one."""
    return not WITHOUT_EFFECT.keys().isdisjoint(config)


def tensors_from_published(tensors: Tensors) -> Tensors:
    """Stack the experts of a published adapter; one of this package's format stays as it is.

    Raises:
        UserError: if an expert between the others is missing, or has another shape.
    """
    ours: Tensors = {}
    experts: dict[str, Tensors] = defaultdict(dict)
    for name, tensor in tensors.items():
        if match := EXPERT.fullmatch(name):
            suffix = "_bias" if match["kind"] == "bias" else ""
            experts[f"{match['layer']}.moe_{match['projection']}{suffix}"][match["expert"]] = tensor
        elif name.endswith(PUBLISHED_ROUTER):
            ours[name.removesuffix(PUBLISHED_ROUTER) + ROUTER] = tensor
        else:
            ours[name] = tensor
    for name, by_expert in experts.items():
        missing = [str(j) for j in range(len(by_expert)) if str(j) not in by_expert]
        if missing:
            raise UserError(f"{name}: the published adapter has {len(by_expert)} experts, but not expert {missing[0]}")
        if len({tensor.shape for tensor in by_expert.values()}) > 1:
            raise UserError(f"{name}: the experts of the published adapter differ in shape")
        ours[name] = torch.stack([by_expert[str(j)] for j in range(len(by_expert))])
    return ours


def published_name(layer: str, expert: int, projection: str, kind: str = "weight") -> str:
    """Name of a tensor of an expert, from 1 on, in the published format."""
    return f"{layer}.moe_experts.{expert - 1}.{projection}.{kind}"


def tensors_to_published(tensors: Tensors) -> Tensors:
    """The inverse of :func:`tensors_from_published`."""
    published: Tensors = {}
    for name, tensor in tensors.items():
        match = STACK.fullmatch(name)
        if name.endswith(ROUTER):
            published[name.removesuffix(ROUTER) + PUBLISHED_ROUTER] = tensor
        elif match is None:
            published[name] = tensor
        else:
            projection, kind = match["name"], "weight"
            if projection.endswith("_bias") and name.removesuffix("_bias") in tensors:
                projection, kind = projection.removesuffix("_bias"), "bias"
            for j, expert in enumerate(tensor):
                published[published_name(match["layer"], j + 1, projection, kind)] = expert.clone()
    return published


def config_from_published(config: Config) -> Config:
    """The published configuration's keys that have an effect, under the same names."""
    ours = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    layers = ours.get("layers_to_transform")
    if isinstance(layers, list):
        # There, lists of counts go by the layer's index, whatever the order of this one.
        for key in DENSE:
            counts = ours.get(key)
            if isinstance(counts, list) and len(counts) > max(layers):
                ours[key] = [counts[layer] for layer in layers]
    if isinstance(ours.get("num_experts"), int):
        # There, one count for all layers leaves these two out.
        ours |= {key: None for key in ("old_num_experts", "group_nums") if key in ours}
    return ours | {"topk": config.get("topk", 1)}


def config_to_published(config: Config, mixture_layers: list[int]) -> Config:
    """The inverse of :func:`config_from_published`; keys that only this package has are left out.

    Args:
        config: This package's configuration, all keys.
        mixture_layers: Indices of the layers that have tensors in the adapter.

    Raises:
        UserError: if the experts are of low rank.
    """
    if config.get("expert_rank") is not None:
        rank = config["expert_rank"]
        raise UserError(f"the published format has full copies of the MLP alone: expert_rank is {rank}")
    published = WITHOUT_EFFECT | {key: config.get(key) for key in SHARED}
    layers, counts = config.get("layers_to_transform"), config["num_experts"]
    if layers is None:
        layers = mixture_layers if isinstance(counts, int) else list(range(len(counts)))
    layers = [layers] if isinstance(layers, int) else layers
    if isinstance(counts, int) and config.get("old_num_experts") is not None:
        counts = published["num_experts"] = [counts] * len(layers)
    for key, dense in DENSE.items():
        value = published[key]
        if isinstance(value, int) and isinstance(counts, list) and key != "group_nums":
            value = [value] * len(layers)
        if isinstance(value, list) and len(value) == len(layers):
            by_layer = dict(zip(layers, value, strict=True))
            value = [by_layer.get(layer, dense) for layer in range(max(layers) + 1)]
        published[key] = value
    return published | {"layers_to_transform": sorted(layers)}


def accepts_published(config_class: ConfigClass) -> ConfigClass:
    """Class decorator: let a configuration be made from the keys of a published one, too."""
    make: Callable[..., None] = config_class.__init__  # type: ignore[misc]

    @wraps(make)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **(config_from_published(kwargs) if is_published_config(kwargs) else kwargs))

    config_class.__init__ = init  # type: ignore[misc]
    return config_class
