"""Runs a model over sentences and stores the pooled activations of its places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from neuronmoe_plugins.neurons.arrays import ModuleKey
from neuronmoe_plugins.neurons.batches import PaddingSide, batches_by_length, padded
from neuronmoe_plugins.neurons.processes import Processes
from neuronmoe_plugins.neurons.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Observer(Protocol):
    """Sees what passes through a model while it is hooked up."""

    @property
    def pooled(self) -> Mapping[ModuleKey, Tensor]:
        """What the last batch gave, float32 (batch, units)."""

    def start_batch(self, attention_mask: Tensor) -> None:
        """Take the mask (batch, tokens) of the batch that comes next."""

    def finish_batch(self) -> None:
        """Check that everything was seen."""


def observe_sentences(
    model: PreTrainedModel,
    token_ids: Sequence[Sequence[int]],
    observing: AbstractContextManager[Observer],
    store: Store,
    batch_size: int,
    padding_side: PaddingSide = "right",
    processes: Processes | None = None,
    progress: bool = False,
) -> None:
    """Run every sentence that `store` does not have yet, and store what an observer pools.

    Several processes share the batches, not the sentences, so that each batch is computed as one process would.

    Args:
        model: A causal language model on its devices; it is run in evaluation mode, without gradients.
        token_ids: One non-empty list of token ids per sentence; every given token counts, a BOS included.
        observing: Hooks the observer up.
        store: Gets the pooled values; what was added is kept also if this is interrupted.
        batch_size: Sentences per forward pass; sentences of like length share a pass, the longest come first.
        padding_side: Where shorter sentences are padded; masked, it does not change the result.
        processes: This process and its siblings, which run the same call.
        progress: Show a progress bar on standard error.
    """
    processes = processes or Processes()
    batches = batches_by_length(token_ids, batch_size)
    missing = store.missing(batches)
    # Before any process stores more: all of them have to share out the same batches.
    processes.wait_for_all()
    todo = processes.share(missing)
    forward = _forward_without_logits(model)
    device = working_device(model)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), observing as observer:
            console = Console(stderr=True)
            for number in track(todo, "Collecting activations", console=console, disable=not progress):
                sentences = batches[number]
                batch = padded([token_ids[row] for row in sentences], padding_side, device)
                observer.start_batch(batch["attention_mask"])
                forward(**batch)
                observer.finish_batch()
                store.add(number, sentences, observer.pooled)
    finally:
        store.close()
        model.train(was_training)


def working_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes its inputs: its device, or, if its first weights are offloaded and nowhere, the CPU."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


def _forward_without_logits(model: PreTrainedModel) -> Callable[..., Any]:
    """What runs all decoder layers: the decoder, or, as an adapter has to see each batch, the whole model."""
    # Layers that share keys and values find those of others in the cache alone.
    use_cache = bool(getattr(model.config.get_text_config(), "num_kv_shared_layers", 0))
    if not hasattr(model, "peft_config"):
        return partial(model.get_decoder(), use_cache=use_cache)
    return partial(model, use_cache=use_cache, logits_to_keep=1)
