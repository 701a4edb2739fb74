"""The demo's sizes and hyper-parameters, chosen for 20 minutes on two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass, field

from neuronmoe_plugins.demo.texts import REPLAY, REVIEW, TextSizes

# What both stages override of the recipe: it is sized for GPUs and billions of tokens.
TRAINING: dict[str, object] = {
    "cutoff_len": 512,
    "per_device_train_batch_size": 2,
    "warmup_steps": 5,
    "disable_gradient_checkpointing": True,  # so small a batch needs no recomputation
    "save_only_model": True,  # an interrupted stage starts again
}
STAGE1: dict[str, object] = {**TRAINING, "max_steps": 90, "learning_rate": 1e-3}
STAGE2: dict[str, object] = {
    **TRAINING,
    "dataset": f"{REPLAY},{REVIEW}",
    "max_steps": 25,
    "learning_rate": 5e-3,
}
# The CPU needs the first; the second is an eighth faster there than torch's fused attention.
ON_CPU: dict[str, object] = {"use_cpu": True, "flash_attn": "disabled"}


@dataclass(frozen=True)
class DemoSettings:
    """Everything that the demo's results depend on, but for the versions of its data."""

    seed: int = 42
    texts: TextSizes = field(default_factory=TextSizes)
    analysis_max_tokens: int = 128
    stage1: dict[str, object] = field(default_factory=lambda: dict(STAGE1))
    stage2: dict[str, object] = field(default_factory=lambda: dict(STAGE2))
    evaluation_max_length: int = 512  # as in training
    routing_tokens: int = 3_000  # per text
