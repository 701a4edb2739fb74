"""All that stands in for functions of LLaMA-Factory; `neuronmoe_plugins.autoload` calls :func:`extend` by module."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from neuronmoe_plugins.host_versions import may_lack
from neuronmoe_plugins.integrations.stand_ins import Call, StandIn, function_of, wrap

ROOMS = "neuronmoe_plugins.integrations.llamafactory"
TRAINER = {
    "__init__(finetuning_args, data_collator)": "trainer:init_trainer",
    "create_optimizer": "learning_rates:create_optimizer",
    "log(logs)": "trainer:log",
    "save_state": "trainer:save_state",
    "_save_checkpoint(trial)": "trainer:save_checkpoint",
    "_save(output_dir)": "trainer:save",
    "_load_optimizer_and_scheduler": "repairs:load_optimizer_and_scheduler",
    "_init_training_state": "repairs:init_training_state",
    "_run_epoch": "repairs:run_epoch",
    "get_batch_samples": "repairs:get_batch_samples",
}
# What mends the host, where it has it; the two in the middle came with transformers 5.4.
REPAIRS = ("_load_optimizer_and_scheduler", "_init_training_state", "_run_epoch", "get_batch_samples")
# Module of the host -> its function or method, with the parameters that its stand-in reads or sets -> the function of a
# room here that stands in for it.
STAND_INS: dict[str, dict[str, str]] = {
    "llamafactory.hparams.parser": {
        "read_args(args)": "given_arguments:read_args",
        "get_train_args(args)": "parser:get_train_args",
        "get_infer_args(args)": "parser:in_one_line",
        "_parse_train_args(args)": "parser:parse_train_args",
        "_parse_infer_args(args)": "parser:parse_infer_args",
        "_verify_model_args(model_args, data_args, finetuning_args)": "parser:verify_model_args",
        "get_last_checkpoint(folder)": "checkpoints:last_checkpoint",
    },
    "llamafactory.data.parser": {"DatasetAttr.join(attr)": "tags:join_with_tags"},
    "llamafactory.data.loader": {
        "_load_single_dataset(dataset_attr, data_args, training_args)": "token_tags:load_with_tags",
        "_get_dataset_processor(do_generate)": "token_tags:tagging_processor",
        "get_dataset(model_args, data_args, training_args, tokenizer)": "token_tags:get_dataset",
    },
    "llamafactory.model.loader": {
        "init_adapter(model, model_args, finetuning_args, is_trainable)": "adapter:init_adapter"
    },
    "llamafactory.train.pt.trainer": {f"CustomTrainer.{name}": target for name, target in TRAINER.items()},
    "llamafactory.train.sft.trainer": {f"CustomSeq2SeqTrainer.{name}": target for name, target in TRAINER.items()},
    "llamafactory.train.sft.workflow": {"create_ref_model(model_args, finetuning_args)": "adapter:create_ref_model"},
    "llamafactory.train.tuner": {"export_model(args)": "export:export_model"},
}
# Asked with every method, to refuse the arguments of `moe` there.
EVERY_METHOD = ("parser:verify_model_args",)
PARSER = "llamafactory.hparams.parser"


def extend(module: ModuleType) -> None:
    """Post-import hook of each module above: teach it `finetuning_type: moe`, or leave it as it is.

    Raises:
        Exception: whatever is wrong; a `moe` run is refused then.
    """
    targets = STAND_INS[module.__name__].items()
    stand_ins = {signature: _for_moe(target) for signature, target in targets if _is_there(module, signature)}
    argument_lists = _import_room("parser").argument_lists(module) if module.__name__ == PARSER else []
    wrap(module, stand_ins)
    if argument_lists:
        _import_room("parser").prepare(argument_lists)


def _is_there(module: ModuleType, signature: str) -> bool:
    """Whether it is to be stood in for: not what this version of the host may lack, or what would be repaired in it."""
    function = function_of(signature)
    owner, _, method = function.partition(".")
    if method in REPAIRS:
        return hasattr(vars(module).get(owner), method)
    return hasattr(module, function) or not may_lack(function, _import_room("arguments").FinetuningArguments)


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
