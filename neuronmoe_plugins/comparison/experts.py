"""How many experts an evaluated model has: the paper's column #Exp."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def count_experts(model_args: Mapping[str, str]) -> int | None:
    """All experts of the `moe` adapter in `--model_args`, a layer's original MLP counting as one (paper, Table 1).

    Args:
        model_args: lm-eval's, by key: `peft` names the adapter, `pretrained` the model.

    Returns:
        The number; None without an adapter of this kind, or where its folder, or that of the model if the number of
        layers is not clear without it, cannot be read.
    """
    adapter = _read(model_args.get("peft"), "adapter_config.json")
    experts, layers = adapter.get("num_experts"), adapter.get("layers_to_transform")
    if adapter.get("peft_type") != "MOE" or experts is None:
        return None
    if isinstance(experts, list) and layers is None:
        return sum(experts)
    num_layers = _num_layers(model_args)
    if num_layers is None and isinstance(layers, list) and layers == list(range(len(layers))):
        num_layers = len(layers)  # the published code names every layer
    if num_layers is None:
        return None
    transformed = range(num_layers) if layers is None else [layers] if isinstance(layers, int) else layers
    if isinstance(experts, int):
        experts = [experts] * len(transformed)
    elif len(experts) == num_layers:
        experts = [experts[layer] for layer in transformed]
    return num_layers - len(transformed) + sum(experts)


def _num_layers(model_args: Mapping[str, str]) -> int | None:
    model = _read(model_args.get("pretrained"), "config.json")
    for config in (model, model.get("text_config", {})):
        if "num_hidden_layers" in config:
            return int(config["num_hidden_layers"])
    return None


def _read(folder: str | None, name: str) -> dict[str, Any]:
    """A JSON object of a folder; empty if it cannot be read."""
    if folder is None:
        return {}
    try:
        return dict(json.loads((Path(folder) / name).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
