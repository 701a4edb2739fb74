"""Configurations of DeepSpeed and FSDP with which the recipes share a training's memory among GPUs."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

# "auto" is filled in by transformers' Trainer from its own arguments.
COMMON: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
}
STAGE2: dict[str, Any] = {"stage": 2, "overlap_comm": True, "contiguous_gradients": True}
STAGE3: dict[str, Any] = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_gather_16bit_weights_on_model_save": True,
}
# HF's Trainer takes DeepSpeed's own Adam for an optimizer in the CPU's memory, which is compiled at first use.
ON_CPU = {"device": "cpu", "pin_memory": True}


class Deepspeed(str, Enum):
    """DeepSpeed configurations that a recipe can use; what each of them shares is in recipes/README.md."""

    ZERO2 = "zero2"
    ZERO2_OFFLOAD = "zero2-offload"
    ZERO3 = "zero3"
    ZERO3_OFFLOAD = "zero3-offload"

    @property
    def file_name(self) -> str:
        return f"{self.value}.json"

    def to_json(self) -> str:
        """The file's content."""
        return json.dumps({**COMMON, "zero_optimization": ZERO_OPTIMIZATION[self]}, indent=2) + "\n"


ZERO_OPTIMIZATION: dict[Deepspeed, dict[str, Any]] = {
    Deepspeed.ZERO2: STAGE2,
    Deepspeed.ZERO2_OFFLOAD: {**STAGE2, "offload_optimizer": ON_CPU},
    Deepspeed.ZERO3: STAGE3,
    Deepspeed.ZERO3_OFFLOAD: {**STAGE3, "offload_optimizer": ON_CPU, "offload_param": ON_CPU},
}

# For `accelerate launch --config_file`. A whole state dict is what an adapter is saved from.
FSDP: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_offload_params": False,
    },
    "mixed_precision": "bf16",
    "num_machines": 1,
    "num_processes": 2,
}
