"""Makes PEFT know the method `moe`."""

from __future__ import annotations

from types import ModuleType

from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType


def register(_peft_model: ModuleType) -> None:
    """Post-import hook of `peft.peft_model`: add the PEFT type and register the tuner under it."""
    add_peft_type("MOE")
    from neuronmoe_plugins.tuner.config import MoeConfig
    from neuronmoe_plugins.tuner.model import MoeModel

    register_peft_method(name="moe", config_cls=MoeConfig, model_cls=MoeModel, prefix=MoeModel.prefix)


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
