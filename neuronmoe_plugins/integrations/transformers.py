"""Counts old-language tokens where transformers' Trainer counts labelled ones."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import wrapt


def extend_trainer(module: ModuleType) -> None:
    """Post-import hook of `transformers.trainer`."""
    wrapt.wrap_function_wrapper(module, "Trainer.get_batch_samples", _get_batch_samples)


def _get_batch_samples(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Stand in for `Trainer.get_batch_samples`, which returns the micro-batches of one step and their item count.

    A micro-batch cannot know how many old-language tokens the others hold, which the mean over all of them needs: every
    one with an `old_language_mask` is told, as `num_old_items_in_batch`. Other batches are left as they are.
    """
    batches, num_items = wrapped(*args, **kwargs)
    if num_items is None or not batches or "old_language_mask" not in batches[0]:
        return batches, num_items
    # Not at the top: the tuner imports peft, which may be what is importing transformers' trainer just now.
    from neuronmoe_plugins.tuner.masks import old_language_tokens

    counts = [old_language_tokens(batch["old_language_mask"], batch.get("attention_mask")).sum() for batch in batches]
    total = torch.stack(counts).sum().to(instance.args.device)
    if instance.args.average_tokens_across_devices and instance.args.world_size > 1:
        total = instance.accelerator.gather(total).sum()
    for batch in batches:
        batch["num_old_items_in_batch"] = total
    return batches, num_items
