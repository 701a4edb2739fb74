"""The frozen copy of the model that `use_asft_loss` compares with, where the model starts from a mixture."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from neuronmoe_plugins.integrations.llamafactory.arguments import MoeFinetuningArguments


def extend_workflow(module: ModuleType) -> None:
    """Let `llamafactory.train.sft.workflow` make reference models that are mixtures."""
    wrapt.wrap_function_wrapper(module, "create_ref_model", _create_ref_model)


def _create_ref_model(
    wrapped: Callable[..., Any], instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Stand in for `create_ref_model(model_args, finetuning_args, add_valuehead)`.

    The host loads the model's own adapter as LoRA and merges it, which a mixture refuses. A new mixture equals its base
    model, which the host loads, and so does a `ref_model` of the user's.
    """
    bound = inspect.signature(wrapped).bind(*args, **kwargs).arguments
    model_args, finetuning_args = bound["model_args"], bound["finetuning_args"]
    starts_from_mixture = finetuning_args.finetuning_type == "moe" and model_args.adapter_name_or_path
    if not starts_from_mixture or finetuning_args.ref_model is not None:
        return wrapped(*args, **kwargs)
    from llamafactory.model import load_model, load_tokenizer

    copied = copy.copy(model_args)  # loading changes it
    as_it_was = MoeFinetuningArguments(finetuning_type="moe", stage=finetuning_args.stage)
    return load_model(load_tokenizer(copied)["tokenizer"], copied, as_it_was, is_trainable=False)
