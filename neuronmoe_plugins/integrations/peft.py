"""Makes PEFT know the method `moe`, and how its adapters lie on disk."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from peft import mapping
from peft.utils import register_peft_method
from peft.utils.integrations import gather_params_ctx
from peft.utils.peft_types import PeftType

from neuronmoe_plugins.host_versions import asks_tuners
from neuronmoe_plugins.integrations.stand_ins import Call, wrap


def register(_peft_model: ModuleType) -> None:
    """Post-import hook of `peft.peft_model`: add the PEFT type and register the tuner under it, or do neither."""
    from neuronmoe_plugins.tuner.config import MoeConfig
    from neuronmoe_plugins.tuner.model import MoeModel

    tables = [value for name, value in vars(mapping).items() if name.startswith("PEFT_TYPE_TO_")]
    before = [dict(table) for table in tables]
    add_peft_type("MOE")
    try:
        register_peft_method(name="moe", config_cls=MoeConfig, model_cls=MoeModel, prefix=MoeModel.prefix)
    except Exception:
        remove_peft_type("MOE")
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)
        raise


def extend_save_and_load(module: ModuleType) -> None:
    """Post-import hook of `peft.utils.save_and_load`: read and write `moe` adapters by their layout on disk.

    Later versions of PEFT ask the tuner, :class:`~neuronmoe_plugins.tuner.checkpoint.AdapterFiles`, but look themselves
    for what is saved beside the mixtures.

    Modules that have imported the functions before this package was, keep them under names of their own.
    """
    importers = [sys.modules[name] for name in ("peft", "peft.utils", "peft.peft_model") if name in sys.modules]
    stand_ins = {
        "get_peft_model_state_dict": ("state_dict", _get_state_dict),
        "set_peft_model_state_dict": ("peft_model_state_dict", _set_state_dict),
    }
    if asks_tuners(module):
        stand_ins = {"set_peft_model_state_dict": ("peft_model_state_dict", _set_named)}
    originals = {name: getattr(module, name) for name in stand_ins}
    wrap(
        module, {f"{name}(model, {tensors}, adapter_name)": stand_in for name, (tensors, stand_in) in stand_ins.items()}
    )
    for name, original in originals.items():
        for importer in importers:
            if vars(importer).get(name) is original:
                setattr(importer, name, getattr(module, name))


def collect_rows_anywhere(module: ModuleType) -> None:
    """Post-import hook of `peft.tuners.trainable_tokens.layer`, which under ZeRO-3 reads rows on CUDA devices alone."""
    wrap(module, {"TrainableTokensLayer._collect_token_weights(weight, rows)": _collect_rows})


def add_peft_type(name: str) -> None:
    """Extend the enumeration `PeftType` by a member whose name and value are `name`; a second call does nothing.

    `register_peft_method` insists on a member, and an enumeration with members cannot be subclassed. The member is
    entered wherever the enum machinery of Python 3.10 to 3.13 looks members up.
    """
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    vars(member).update(_name_=name, _value_=name, __objclass__=PeftType, _sort_order_=len(PeftType.__members__))
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    vars(PeftType).get("_hashable_values_", []).append(name)
    type.__setattr__(PeftType, name, member)


def remove_peft_type(name: str) -> None:
    """Undo :func:`add_peft_type`."""
    PeftType._member_names_.remove(name)
    del PeftType._member_map_[name], PeftType._value2member_map_[name]
    if hashable := vars(PeftType).get("_hashable_values_"):
        hashable.remove(name)
    type.__delattr__(PeftType, name)


def _collect_rows(call: Call) -> Any:
    """Stand in for `_collect_token_weights(weight, rows, embed_dim)` where it would ask for a CUDA device in vain.

    ZeRO-3 gives every process the whole weight, of which each reads the rows by itself.
    """
    weight = call.arguments["weight"]
    if weight.is_cuda or not hasattr(weight, "ds_id"):
        return call.host()
    with gather_params_ctx([weight], modifier_rank=None):
        return weight.detach()[call.arguments["rows"]].clone()


def _get_state_dict(call: Call) -> Any:
    """Stand in for `get_peft_model_state_dict(model, state_dict=None, adapter_name="default", ...)`."""
    model, state_dict = call.arguments["model"], call.arguments.get("state_dict")
    adapter_name = call.arguments.get("adapter_name", "default")
    if model.peft_config[adapter_name].peft_type != "MOE":
        return call.host()
    from neuronmoe_plugins.tuner.checkpoint import to_file, without_other_adapters

    state_dict = model.state_dict() if state_dict is None else state_dict
    return to_file(call.host(state_dict=without_other_adapters(state_dict, model, adapter_name)))


def _set_named(call: Call) -> Any:
    """Stand in for `set_peft_model_state_dict(...)` of later versions, which miss a saved module with a KeyError."""
    model, tensors = call.arguments["model"], call.arguments["peft_model_state_dict"]
    adapter_name = call.arguments.get("adapter_name", "default")
    if model.peft_config[adapter_name].peft_type != "MOE":
        return call.host()
    from neuronmoe_plugins.tuner.checkpoint import from_file, in_model_names

    named = in_model_names(tensors, model)
    try:
        return call.host(peft_model_state_dict=named)
    except KeyError:
        from_file(named, model, adapter_name)
        raise


def _set_state_dict(call: Call) -> Any:
    """Stand in for `set_peft_model_state_dict(model, peft_model_state_dict, adapter_name="default", ...)`."""
    model, tensors = call.arguments["model"], call.arguments["peft_model_state_dict"]
    adapter_name = call.arguments.get("adapter_name", "default")
    if model.peft_config[adapter_name].peft_type != "MOE":
        return call.host()
    from neuronmoe_plugins.tuner.checkpoint import from_file

    check_shapes = not call.arguments.get("ignore_mismatched_sizes", False)
    return call.host(peft_model_state_dict=from_file(tensors, model, adapter_name, check_shapes))
