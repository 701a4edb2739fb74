"""LLaMA-Factory's browser interface, LlamaBoard: `moe` in its list of methods, with adapters as for LoRA.

Not in the folder `llamafactory`, whose import is that of the host's arguments: they import the constants hooked here.
"""

from __future__ import annotations

from types import ModuleType


def offer_moe(constants: ModuleType) -> None:
    """Post-import hook of `llamafactory.extras.constants`; nothing but the interface reads these two."""
    constants.METHODS.append("moe")
    constants.PEFT_METHODS.add("moe")
