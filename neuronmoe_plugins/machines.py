"""What a recipe's training runs on: a CPU or GPUs, and how DeepSpeed and FSDP share its memory among GPUs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any

from neuronmoe_plugins.errors import UserError


class Device(str, Enum):
    """What a recipe is written for."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class Machine:
    """What a YAML has to say of the machine that it runs on.

    Attributes:
        bf16: Whether it computes in bfloat16, beside weights in float32.
        use_cpu: Whether the YAML says that there is no accelerator.
        note: For whom all of this is, in one line; None where it is the paper's.
    """

    bf16: bool = True
    use_cpu: bool = False
    note: str | None = None


GPU = Machine()


def find_machine(device: Device, deepspeed: Deepspeed | None) -> Machine:
    """What to write for a device; `auto` asks torch what is here.

    Raises:
        UserError: if DeepSpeed's configuration offloads to the CPU's memory, and there is nothing else.
    """
    if device is Device.AUTO:
        bf16 = _accelerator_has_bf16()
        if bf16 is False:
            return Machine(False, note="Written for this machine's accelerator, in float32: it has no bfloat16.")
        device = Device.CPU if bf16 is None else Device.CUDA
    if device is Device.CUDA:
        note = "Written for a GPU with bfloat16; `neuronmoe recipe --device cpu` writes for a machine without a GPU."
        return Machine(note=note)
    return _cpu(deepspeed)


def _cpu(deepspeed: Deepspeed | None) -> Machine:
    """What runs without an accelerator."""
    other = "`neuronmoe recipe --device cuda` writes for a GPU."
    if deepspeed in (Deepspeed.ZERO2_OFFLOAD, Deepspeed.ZERO3_OFFLOAD):
        name = deepspeed.value
        raise UserError(
            f"--deepspeed {name} moves what a GPU holds into the CPU's memory, and this recipe is for a CPU; pass "
            f"--deepspeed {name.removesuffix('-offload')}, or --device cuda to write for a GPU"
        )
    if deepspeed is Deepspeed.ZERO3:
        return Machine(False, note=f"Written for a CPU, for ZeRO-3 in float32 and without use_cpu; {other}")
    if not _cpu_has_bf16():
        return Machine(False, True, f"Written for a CPU (use_cpu), in float32: this one has no bfloat16; {other}")
    return Machine(use_cpu=True, note=f"Written for a CPU (use_cpu); {other}")


def _accelerator_has_bf16() -> bool | None:
    """Whether this machine's accelerator computes in bfloat16; None if there is none."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    others = getattr(torch, "accelerator", None)  # since torch 2.6
    if others is None or not others.is_available():
        return None
    from transformers.utils import is_torch_bf16_gpu_available

    return is_torch_bf16_gpu_available()


def _cpu_has_bf16() -> bool:
    """Whether this machine's CPU has instructions for bfloat16, without which it takes many times as long."""
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fast_dtype() -> str:
    """`bfloat16`, or `float32` on a CPU without instructions for it."""
    return "float32" if _accelerator_has_bf16() is None and not _cpu_has_bf16() else "bfloat16"


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
