"""Hooks on `llamafactory.hparams.parser`: new keys, their checks, and the settings that `moe` training needs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.integrations.commands import end_in_one_line
from neuronmoe_plugins.integrations.llamafactory.arguments import replace_argument_classes
from neuronmoe_plugins.integrations.llamafactory.checkpoints import extend_choice
from neuronmoe_plugins.integrations.llamafactory.checks import (
    MoeRun,
    check_inference_command,
    check_launcher,
    check_method,
    check_train_command,
)
from neuronmoe_plugins.integrations.llamafactory.given_arguments import Given, is_moe, read_args


def extend_parser(module: ModuleType) -> None:
    """Teach the parser `finetuning_type: moe`."""
    end_in_one_line()
    replace_argument_classes(module)
    wrapt.wrap_function_wrapper(module, "read_args", read_args)
    wrapt.wrap_function_wrapper(module, "_verify_model_args", _verify_model_args)
    wrapt.wrap_function_wrapper(module, "_parse_train_args", _parse_train_args(module))
    wrapt.wrap_function_wrapper(module, "_parse_infer_args", _parse_infer_args(module))
    for name in ("get_train_args", "get_infer_args"):
        wrapt.wrap_function_wrapper(module, name, _in_one_line(module))
    extend_choice(module)


def check_training_arguments(module: ModuleType, given: Given | list[str]) -> MoeRun | None:
    """Check a training's arguments as the parser `module` does before it makes anything of them.

    Raises:
        UserError: naming the keys.
    """
    return check_train_command(given, module._TRAIN_ARGS)


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
        run = check_training_arguments(module, given)
        model_args, data_args, training_args, finetuning_args, generating_args = wrapped(given)
        if run is not None:
            _log(module, run)
            if run.trains:
                check_launcher(training_args)
                _prepare_training(model_args, training_args, run.given)
        return model_args, data_args, training_args, finetuning_args, generating_args

    return wrapper


def _parse_infer_args(module: ModuleType) -> Callable[..., Any]:
    """Make the stand-in for `_parse_infer_args(args)` of the parser `module`."""

    def wrapper(wrapped: Callable[..., Any], instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = module.read_args(*args, **kwargs)
        run = check_inference_command(given, module._INFER_ARGS)
        if run is not None:
            _log(module, run)
        return wrapped(given)

    return wrapper


def _in_one_line(module: ModuleType) -> Callable[..., Any]:
    """Make the stand-in for a function of the parser `module` whose own refusals of a `moe` run become one line."""

    def wrapper(wrapped: Callable[..., Any], instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = module.read_args(*args, **kwargs)
        try:
            return wrapped(given)
        except UserError:
            raise
        except ValueError as error:
            if not is_moe(given):
                raise
            raise UserError(one_line(error)) from error

    return wrapper


def _prepare_training(model_args: Any, training_args: Any, given: Given) -> None:
    """Set what the host sets for LoRA, and the checkpointing that keeps the router logits' gradient."""
    if "use_reentrant_gc" not in given:
        model_args.use_reentrant_gc = False
    training_args.label_names = training_args.label_names or ["labels"]
    if training_args.ddp_find_unused_parameters is None:
        training_args.ddp_find_unused_parameters = False


def _log(module: ModuleType, run: MoeRun) -> None:
    for note in run.notes:
        module.logger.info_rank0(note)
    for warning in run.warnings:
        module.logger.warning_rank0(warning)
