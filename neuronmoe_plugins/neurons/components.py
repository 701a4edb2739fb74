"""The two parts of a decoder layer that have neurons; imports no torch, so that options are checked without it."""

from __future__ import annotations

import re
from typing import Literal, get_args

Component = Literal["attention", "mlp"]
COMPONENTS: tuple[Component, ...] = get_args(Component)
# By the first part of a projection's name inside its layer, as in self_attn.q_proj, attention.dense, mlp.c_fc, fc1.
COMPONENT_NAMES: dict[Component, re.Pattern[str]] = {
    "attention": re.compile("attn|attention"),
    "mlp": re.compile("mlp|feed_forward|ffn|^fc"),
}


def component_of(name: str) -> Component | None:
    """The component of a projection with this name inside its decoder layer."""
    first = name.split(".")[0].lower()
    return next((component for component, pattern in COMPONENT_NAMES.items() if pattern.search(first)), None)
