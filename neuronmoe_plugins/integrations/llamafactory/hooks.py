"""All that stands in for functions of LLaMA-Factory; `neuronmoe_plugins.autoload` calls :func:`extend` by module.

A hook that fails leaves the host as it is for other methods, and ends a run that asks for `moe`.
"""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import Any

from neuronmoe_plugins.integrations.commands import end_in_one_line
from neuronmoe_plugins.integrations.stand_ins import Call, StandIn, refusal_of_moe, wrap

ROOMS = "neuronmoe_plugins.integrations.llamafactory"
TRAINER = {
    "__init__": "trainer:init_trainer",
    "log": "trainer:log",
    "save_state": "trainer:save_state",
    "_save_checkpoint": "trainer:save_checkpoint",
    "_save": "trainer:save",
    "_load_optimizer_and_scheduler": "trainer:load_optimizer_and_scheduler",
    "_init_training_state": "trainer:init_training_state",
    "_run_epoch": "trainer:run_epoch",
}
# What mends the host, where it has it; the last two came with transformers 5.4.
REPAIRS = ("_load_optimizer_and_scheduler", "_init_training_state", "_run_epoch")
# Module of the host -> its function or method -> the function of a room here that stands in for it.
STAND_INS: dict[str, dict[str, str]] = {
    "llamafactory.hparams.parser": {
        "read_args": "given_arguments:read_args",
        "get_train_args": "parser:in_one_line",
        "get_infer_args": "parser:in_one_line",
        "_parse_train_args": "parser:parse_train_args",
        "_parse_infer_args": "parser:parse_infer_args",
        "_verify_model_args": "parser:verify_model_args",
        "get_last_checkpoint": "checkpoints:last_checkpoint",
    },
    "llamafactory.data.parser": {"DatasetAttr.join": "tags:join_with_tags"},
    "llamafactory.data.loader": {
        "_load_single_dataset": "token_tags:load_with_tags",
        "_get_dataset_processor": "token_tags:tagging_processor",
        "get_dataset": "token_tags:get_dataset",
    },
    "llamafactory.model.loader": {"init_adapter": "adapter:init_adapter"},
    "llamafactory.train.pt.trainer": {f"CustomTrainer.{name}": target for name, target in TRAINER.items()},
    "llamafactory.train.sft.trainer": {f"CustomSeq2SeqTrainer.{name}": target for name, target in TRAINER.items()},
    "llamafactory.train.sft.workflow": {"create_ref_model": "adapter:create_ref_model"},
    "llamafactory.train.tuner": {"export_model": "export:export_model"},
}
# Asked with every method, to refuse the arguments of `moe` there.
EVERY_METHOD = ("parser:verify_model_args",)
PARSER = "llamafactory.hparams.parser"
ASKS_FOR_MOE = re.compile(r"""\bfinetuning_type["']?[\s:=,'"]+moe\b""")


def extend(module: ModuleType) -> None:
    """Post-import hook of each module above: teach it `finetuning_type: moe`.

    Raises:
        Exception: whatever is wrong; a `moe` run is refused then.
    """
    try:
        targets = STAND_INS[module.__name__].items()
        stand_ins = {name: _for_moe(target) for name, target in targets if _is_there(module, name)}
        if module.__name__ == PARSER:
            _import_room("parser").prepare(module)
        for name, stand_in in stand_ins.items():
            wrap(module, name, stand_in)
    except Exception as error:
        if module.__name__ == PARSER:
            _refuse_moe(module, error)
        raise


def _is_there(module: ModuleType, name: str) -> bool:
    """Whether it is to be stood in for: not what would be repaired, and this version of the host does not have."""
    owner, _, method = name.partition(".")
    return method not in REPAIRS or hasattr(vars(module).get(owner), method)


def _for_moe(target: str) -> StandIn:
    """The stand-in, which is not asked about a run that is known to be one of another method."""
    room, function = target.split(":")
    stand_in: StandIn = getattr(_import_room(room), function)
    if target in EVERY_METHOD:
        return stand_in

    def stand_in_for_moe(call: Call) -> Any:
        given = getattr(call.instance, "finetuning_args", None) or call.arguments.get("finetuning_args")
        return call.host() if given is not None and given.finetuning_type != "moe" else stand_in(call)

    return stand_in_for_moe


def _import_room(room: str) -> Any:
    return importlib.import_module(f"{ROOMS}.{room}")


def _refuse_moe(parser: ModuleType, error: Exception) -> None:
    """Let the parser refuse `moe`, which it was not taught, and parse everything else as it does."""

    def parse(call: Call) -> Any:
        given = parser.read_args(call.arguments.get("args"))
        if ASKS_FOR_MOE.search(str(given)):
            raise refusal_of_moe(PARSER, error) from error
        return call.host()

    end_in_one_line()
    for name in ("get_train_args", "get_infer_args"):
        wrap(parser, name, parse)
