"""What the programs that start several processes must be told for a mixture to train, and to be saved whole."""

from __future__ import annotations

import os
from typing import Any

from neuronmoe_plugins.errors import UserError


def check_launcher(training_args: Any) -> None:
    """Refuse settings of FSDP under which training would fail, or end without an adapter.

    Args:
        training_args: The host's training arguments; accelerate passes its settings on in the environment.

    Raises:
        UserError: naming the key.
    """
    settings = training_args.fsdp_plugin_args
    if settings is None and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    version = (settings or {}).get("fsdp_version") or int(os.environ.get("FSDP_VERSION", "1"))
    if version != 2:
        raise UserError(
            "fsdp_version: 1 wraps each router by itself, apart from its experts: set fsdp_version: 2, as in "
            "recipes/accelerate/fsdp.yaml"
        )
    state_dict_type = os.environ.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")
    if state_dict_type.upper() != "FULL_STATE_DICT":
        raise UserError(
            f"fsdp_state_dict_type: {state_dict_type} saves no adapter at the end: set fsdp_state_dict_type: "
            "FULL_STATE_DICT, or FSDP_STATE_DICT_TYPE=FULL_STATE_DICT in the environment"
        )
