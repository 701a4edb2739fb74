"""What stands in for LLaMA-Factory's parser: new keys, their checks, and the settings that `moe` training needs."""

from __future__ import annotations

import copy
import sys
from functools import partial
from types import ModuleType
from typing import Any, get_args

from llamafactory.extras.misc import is_env_enabled
from llamafactory.hparams.data_args import DataArguments
from llamafactory.hparams.finetuning_args import FinetuningArguments

from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.integrations.commands import argument_checks, end_in_one_line, explanations
from neuronmoe_plugins.integrations.llamafactory.arguments import MoeDataArguments, MoeFinetuningArguments
from neuronmoe_plugins.integrations.llamafactory.checkpoints import choose_checkpoint, forget_choice
from neuronmoe_plugins.integrations.llamafactory.checks import (
    check_hooks,
    check_inference_command,
    check_launcher,
    check_method,
    check_rows,
    check_train_command,
)
from neuronmoe_plugins.integrations.llamafactory.experts import check_resumed_experts
from neuronmoe_plugins.integrations.llamafactory.given_arguments import is_moe
from neuronmoe_plugins.integrations.llamafactory.learning_rates import check_learning_rates
from neuronmoe_plugins.integrations.llamafactory.run import MoeRun
from neuronmoe_plugins.integrations.llamafactory.run_end import explain_end
from neuronmoe_plugins.integrations.stand_ins import Call

COMMAND = "llamafactory-cli"
# Of the environment.
OTHER_LOOPS = ("USE_MCA", "USE_MEGATRON_BRIDGE")


def argument_lists(module: ModuleType) -> list[list[type]]:
    """The lists of `llamafactory.hparams.parser` that commands parse by.

    Raises:
        AttributeError: if one of them is not there.
    """
    return [getattr(module, f"{name}_ARGS") for name in ("_TRAIN", "_INFER", "_EVAL")]


def prepare(lists: list[list[type]]) -> None:
    """Put our argument classes into the lists above, in the place of the host's."""
    end_in_one_line()
    argument_checks[COMMAND] = check_command_line
    replacements = {FinetuningArguments: MoeFinetuningArguments, DataArguments: MoeDataArguments}
    for classes in lists:
        classes[:] = [replacements.get(argument_class, argument_class) for argument_class in classes]


def check_command_line() -> MoeRun | None:
    """Check the arguments of a training as every worker would; raises UserError, naming the keys."""
    return check_train_command(_host().read_args(), _host()._TRAIN_ARGS)


def verify_model_args(call: Call) -> None:
    """Stand in for `_verify_model_args(model_args, data_args, finetuning_args)`, with every method."""
    arguments = call.arguments
    check_method(**arguments)
    if arguments["finetuning_args"].finetuning_type != "moe":
        call.host()
        return
    # The host refuses adapters to every method but its own; all its other checks hold for `moe` too.
    model_args = copy.copy(arguments["model_args"])
    model_args.adapter_name_or_path = None
    call.host(model_args=model_args)


def parse_train_args(call: Call) -> tuple[Any, ...]:
    """Stand in for `_parse_train_args(args)`."""
    forget_choice()
    explanations.pop(COMMAND, None)
    host = _host()
    given = host.read_args(call.arguments.get("args"))
    if is_moe(given):
        check_hooks(trains=True)
    run = check_train_command(given, host._TRAIN_ARGS)
    if run is None:
        return tuple(call.host(args=given))
    parsed = run.all_arguments(host._TRAIN_ARGS)
    _log(run)
    if run.trains:
        training_args = parsed[2]
        check_launcher(training_args)
        check_rows(run)
        check_learning_rates(run.finetuning_args, training_args)
        # What the host sets for LoRA, and the checkpointing that keeps the router logits' gradient.
        run.model_args.use_reentrant_gc = run.given.get("use_reentrant_gc", False)
        training_args.label_names = training_args.label_names or ["labels"]
        if training_args.ddp_find_unused_parameters is None:
            training_args.ddp_find_unused_parameters = False
        checkpoint = choose_checkpoint(training_args)
        if checkpoint is not None:
            # Not at the top: it imports more of the host, whose arguments are being imported when this module is.
            from neuronmoe_plugins.integrations.llamafactory.adapter_fit import check_resumed_base

            check_resumed_base(run.model_args, run.base_config, checkpoint)
            check_resumed_experts(run.config, checkpoint, run.num_layers)
        explanations[COMMAND] = partial(explain_end, training_args)
    return parsed


def parse_infer_args(call: Call) -> tuple[Any, ...]:
    """Stand in for `_parse_infer_args(args)`."""
    host = _host()
    given = host.read_args(call.arguments.get("args"))
    if is_moe(given):
        check_hooks(trains=False)
    run = check_inference_command(given, host._INFER_ARGS)
    if run is None:
        return tuple(call.host(args=given))
    _log(run)
    # A class that is parsed beside those of the result is of KTransformers, which `moe` has no use for.
    return run.all_arguments(host._INFER_ARGS)[: len(get_args(host._INFER_CLS))]


def get_train_args(call: Call) -> Any:
    """Stand in for `get_train_args(args)`, which parses by other lists for back ends with training loops of their own.

    Raises:
        UserError: naming the switch of such a back end.
    """
    if is_moe(_host().read_args(call.arguments.get("args"))):
        for switch in OTHER_LOOPS:
            if is_env_enabled(switch):
                raise UserError(f"finetuning_type: moe does not work with {switch}: it has a training loop of its own")
    return in_one_line(call)


def in_one_line(call: Call) -> Any:
    """Stand in for a function that parses `args`: the host's own refusals of a `moe` run become one line."""
    given = _host().read_args(call.arguments.get("args"))
    try:
        return call.host(args=given)
    except UserError:
        raise
    except ValueError as error:
        if not is_moe(given):
            raise
        raise UserError(one_line(error)) from error


def _host() -> Any:
    return sys.modules["llamafactory.hparams.parser"]


def _log(run: MoeRun) -> None:
    for note in run.notes:
        _host().logger.info_rank0(note)
    for warning in run.warnings:
        _host().logger.warning_rank0(warning)
