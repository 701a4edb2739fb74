"""Hooks on `llamafactory.hparams.parser`: new keys, their checks, and the settings that `moe` training needs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from neuronmoe_plugins.integrations.llamafactory.arguments import replace_argument_classes
from neuronmoe_plugins.integrations.llamafactory.checks import check_method, check_training


def extend_parser(module: ModuleType) -> None:
    """Teach the parser `finetuning_type: moe`."""
    replace_argument_classes(module)
    wrapt.wrap_function_wrapper(module, "_verify_model_args", _verify_model_args)
    wrapt.wrap_function_wrapper(module, "_parse_train_args", _parse_train_args(module))


def _verify_model_args(
    wrapped: Callable[..., None], instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Stand in for `_verify_model_args(model_args, data_args, finetuning_args)`."""
    bound = inspect.signature(wrapped).bind(*args, **kwargs)
    check_method(**bound.arguments)
    if bound.arguments["finetuning_args"].finetuning_type == "moe":
        # The host refuses adapters to every method but its own; all its other checks hold for `moe` too.
        bound.arguments["model_args"] = copy.copy(bound.arguments["model_args"])
        bound.arguments["model_args"].adapter_name_or_path = None
    wrapped(*bound.args, **bound.kwargs)


def _parse_train_args(module: ModuleType) -> Callable[..., Any]:
    """Make the stand-in for `_parse_train_args(args)` of the parser `module`."""

    def wrapper(wrapped: Callable[..., Any], instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = module.read_args(*args, **kwargs)
        model_args, data_args, training_args, finetuning_args, generating_args = wrapped(given)
        if finetuning_args.finetuning_type == "moe":
            check_method(model_args, data_args, finetuning_args)
            if training_args.do_train:
                check_training(model_args, data_args, finetuning_args, _given_keys(given))
                _prepare_training(model_args, training_args, _given_keys(given))
        return model_args, data_args, training_args, finetuning_args, generating_args

    return wrapper


def _prepare_training(model_args: Any, training_args: Any, given: set[str]) -> None:
    """Set what the host sets for LoRA, and the checkpointing that keeps the router logits' gradient."""
    if "use_reentrant_gc" not in given:
        model_args.use_reentrant_gc = False
    training_args.label_names = training_args.label_names or ["labels"]
    if training_args.ddp_find_unused_parameters is None:
        training_args.ddp_find_unused_parameters = False


def _given_keys(given: dict[str, Any] | list[str]) -> set[str]:
    """Names of the arguments that the user gave, in a YAML or on the command line."""
    if isinstance(given, dict):
        return set(given)
    return {word[2:].split("=")[0].replace("-", "_") for word in given if word.startswith("--")}
