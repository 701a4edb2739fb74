"""The base model by its configuration alone: readable, not quantised beyond use, and with MLPs that can be mixtures."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.feed_forward.finding import find_feed_forwards


def load_base_config(model_args: Any) -> PretrainedConfig:
    """The configuration of `model_name_or_path`.

    Raises:
        UserError: if there is none, or it is that of a quantised model whose MLPs cannot be copied.
    """
    from llamafactory.model.loader import load_config

    name = model_args.model_name_or_path
    try:
        config = load_config(model_args)
    except (OSError, ValueError) as error:
        place = "" if Path(str(name)).is_dir() else " (which is no folder here)"
        raise UserError(f"model_name_or_path: {name}{place} has no usable config.json: {one_line(error)}") from error
    quantised = getattr(config, "quantization_config", None)
    if quantised and not _is_four_bit(quantised):
        method = _setting(quantised, "quant_method")
        raise UserError(
            f"model_name_or_path: {name} is quantised ({getattr(method, 'value', method)}): take it unquantised, or in "
            "4 bits with bitsandbytes"
        )
    return config


def empty_base_model(model_args: Any, config: PretrainedConfig) -> PreTrainedModel | None:
    """The base model without memory for its weights; None for an architecture that transformers does not have.

    Raises:
        UserError: if its MLPs cannot become mixtures.
    """
    classes = (AutoModelForImageTextToText._model_mapping, AutoModelForCausalLM._model_mapping)
    model_class: Any = next((known[type(config)] for known in classes if type(config) in known), None)
    if model_class is None:
        return None
    with torch.device("meta"):
        # Not from_config, which DeepSpeed's ZeRO-3 extends.
        model: PreTrainedModel = model_class(copy.deepcopy(config))
    try:
        find_feed_forwards(model)
    except ValueError as error:
        raise UserError(f"model_name_or_path: {model_args.model_name_or_path}: {one_line(error)}") from error
    return model


def _is_four_bit(quantised: Any) -> bool:
    return bool(_setting(quantised, "load_in_4bit") or _setting(quantised, "_load_in_4bit"))


def _setting(quantised: Any, name: str) -> Any:
    return quantised.get(name) if isinstance(quantised, dict) else getattr(quantised, name, None)
