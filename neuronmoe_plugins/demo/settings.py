"""The demo's sizes and hyper-parameters, chosen for 20 minutes on two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass, field

from neuronmoe_plugins.demo.texts import REPLAY, REVIEW, TextSizes

# What the recipe leaves to the user or sizes for a GPU and billions of tokens.
STAGE1_OVERRIDES: dict[str, object] = {
    "cutoff_len": 512,
    "per_device_train_batch_size": 2,
    "max_steps": 100,
    "learning_rate": 1e-3,
    "warmup_steps": 5,
}
STAGE2_OVERRIDES: dict[str, object] = {
    "dataset": f"{REPLAY},{REVIEW}",
    "cutoff_len": 512,
    "per_device_train_batch_size": 2,
    "max_steps": 30,
    "learning_rate": 5e-3,
}


@dataclass(frozen=True)
class DemoSettings:
    """Everything that the demo's results depend on, but for the versions of its data."""

    seed: int = 42
    texts: TextSizes = field(default_factory=TextSizes)
    analysis_max_tokens: int = 128
    stage1: dict[str, object] = field(default_factory=lambda: dict(STAGE1_OVERRIDES))
    stage2: dict[str, object] = field(default_factory=lambda: dict(STAGE2_OVERRIDES))
    evaluation_max_length: int = 512  # as in training
    routing_tokens: int = 3_000  # per text
