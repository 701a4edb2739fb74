"""What stands in for a host where a hook has failed: `moe` is refused with the reason, and the rest stays as it is.

It imports no host, and nothing of this package that does: what is missing there may be why the hook has failed. Hooks
of LLaMA-Factory that are not here are looked for by its parser's, and those of PEFT by the tuner.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NoReturn

from neuronmoe_plugins.autoload import refusal
from neuronmoe_plugins.integrations.commands import end_in_one_line
from neuronmoe_plugins.integrations.stand_ins import Call, wrap

ASKS_FOR_MOE = re.compile(r"""\bfinetuning_type["']?[\s:=,'"]+moe\b""")
Refusal = Callable[[Callable[[], NoReturn], Call], Any]


def refuse(module: ModuleType, error: Exception) -> None:
    """Let what a module has of the functions below refuse `moe`.

    Args:
        module: The host's module whose hook has failed.
        error: Why.
    """

    def fail() -> NoReturn:
        raise refusal(module.__name__, error) from error

    for function, stand_in in REFUSALS.get(module.__name__, {}).items():
        try:
            wrap(module, {function: partial(stand_in, fail)})
        except AttributeError:
            continue  # what is not there is not called
    end_in_one_line()


def _parse_words(refuse_moe: Callable[[], NoReturn], call: Call) -> Any:
    """Of a command line, or a dictionary; a file's arguments reach the next one."""
    given = call.arguments.get("args")
    if ASKS_FOR_MOE.search(str(sys.argv[1:] if given is None else given)):
        refuse_moe()
    return call.host()


def _check_method(refuse_moe: Callable[[], NoReturn], call: Call) -> Any:
    if call.instance.finetuning_type == "moe":
        refuse_moe()
    return call.host()


def _parse_v1(refuse_moe: Callable[[], NoReturn], call: Call) -> Any:
    parsed = call.host()
    if any((getattr(one, "peft_config", None) or {}).get("name") == "moe" for one in parsed):
        refuse_moe()
    return parsed


def _read_type(refuse_moe: Callable[[], NoReturn], call: Call) -> Any:
    kind = call.host()
    if kind == "MOE":
        refuse_moe()
    return kind


def _make_config(refuse_moe: Callable[[], NoReturn], call: Call) -> Any:
    if call.arguments.get("peft_type") == "MOE":
        refuse_moe()
    return call.host()


def _load_adapter(refuse_moe: Callable[[], NoReturn], call: Call) -> Any:
    """Its weights may not have been loaded."""
    answer = call.host()
    if _is_mixture(call.instance):
        refuse_moe()
    return answer


def _train(refuse_moe: Callable[[], NoReturn], call: Call) -> Any:
    if _is_mixture(call.instance.model):
        refuse_moe()
    return call.host()


def _patch(refuse_moe: Callable[[], NoReturn], call: Call) -> Any:
    if _is_mixture(call.arguments["model"]):
        refuse_moe()
    return call.host()


def _is_mixture(model: Any) -> bool:
    return any("moe_objective" in vars(module) for module in model.modules())


REFUSALS: dict[str, dict[str, Refusal]] = {
    "llamafactory.hparams.parser": {
        "get_train_args(args)": _parse_words,
        "get_infer_args(args)": _parse_words,
        "FinetuningArguments.__post_init__": _check_method,
    },
    "llamafactory.v1.config.arg_parser": {"get_args": _parse_v1},
    "peft.peft_model": {"PeftConfig._get_peft_type": _read_type, "PeftConfig.from_peft_type": _make_config},
    "transformers.integrations.peft": {"PeftAdapterMixin.load_adapter": _load_adapter},
    "transformers.trainer": {"Trainer.train": _train},
    "liger_kernel.transformers.monkey_patch": {"_apply_liger_kernel_to_instance(model)": _patch},
}
