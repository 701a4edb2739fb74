"""Runs a model over sentences and stores the pooled activations of its places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.arrays import FileStore, MemoryStore, ModuleKey, Store
from neuronmoe_plugins.neurons.chat import Span
from neuronmoe_plugins.neurons.options import AnalyzeOptions, MeasuringOptions
from neuronmoe_plugins.neurons.processes import Processes
from neuronmoe_plugins.neurons.sentences import PaddingSide, TokenizedSentences
from neuronmoe_plugins.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Observer(Protocol):
    """Sees what passes through a model while it is hooked up."""

    @property
    def pooled(self) -> Mapping[ModuleKey, Tensor]:
        """What the last batch gave, float32 (batch, units)."""

    def start_batch(self, attention_mask: Tensor) -> None:
        """Take the mask (batch, tokens) of what counts in the batch that comes next."""

    def finish_batch(self) -> None:
        """Check that everything was seen."""


def pool_activations(
    model: PreTrainedModel,
    sentences: TokenizedSentences,
    observing: AbstractContextManager[Observer],
    units: Mapping[ModuleKey, int],
    options: AnalyzeOptions,
    folder: Path,
    processes: Processes,
    progress: bool,
    backward: bool = False,
) -> Store:
    """Run a model over all sentences; returns what an observer pooled of them, in all processes.

    Args:
        model: A causal language model on its devices.
        sentences: The sentences of all languages.
        observing: Hooks the observer up.
        units: What it pools: the number of units of each module.
        options: How much may stay in memory, and the size of a batch.
        folder: Where the rest goes.
        processes: This process and its siblings, which run the same call.
        progress: Show a progress bar on standard error.
        backward: Also run the backward pass of the loss.

    Raises:
        UserError: if the device's memory or the disk is too small.
    """
    limit = memory_limit(options.memory_limit, model.device, processes)
    token_ids, side, own = sentences.token_ids, sentences.padding_side, sentences.own
    store = processes.first_first(lambda: open_store(folder, units, len(token_ids), limit, processes))
    with out_of_memory_is_an_error(options):
        observe_sentences(
            model, token_ids, observing, store, options.batch_size, side, processes, progress, own, backward
        )
    processes.wait_for_all()
    return store


def memory_limit(asked: float | None, device: torch.device, processes: Processes) -> float:
    """Bytes that may stay in memory: by default none on a CPU, whose page cache keeps the file, half of a free GPU."""
    if processes.world_size > 1:
        if asked:
            raise UserError("--memory-limit has no effect under torchrun, whose processes share a file; leave it out")
        return 0
    if asked is not None:
        return asked * 1e9
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else 0


def open_store(
    folder: Path, units: Mapping[ModuleKey, int], num_sentences: int, limit: float, processes: Processes
) -> Store:
    """A store in memory if its rows need no more than `limit` bytes, else one in `folder`."""
    needed = 4 * num_sentences * sum(units.values())
    if needed <= limit:
        return MemoryStore(num_sentences)
    return FileStore(folder, units, num_sentences, processes.rank)


@contextmanager
def out_of_memory_is_an_error(options: MeasuringOptions) -> Iterator[None]:
    """Raise `UserError`, which names the options that help, where the device's memory is too small for the block."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"--batch-size {options.batch_size} with sentences of up to {options.max_tokens} tokens does not fit into "
            f"the device's memory; pass a smaller {options.take_memory}, or --dtype bfloat16"
        ) from error


def observe_sentences(
    model: PreTrainedModel,
    token_ids: Sequence[Sequence[int]],
    observing: AbstractContextManager[Observer],
    store: Store,
    batch_size: int,
    padding_side: PaddingSide = "right",
    processes: Processes | None = None,
    progress: bool = False,
    own: Sequence[Span] | None = None,
    backward: bool = False,
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
        own: First token of each sentence that is pooled, and the one behind the last; all of them unless given.
        backward: Also run the backward pass of the loss of predicting these tokens; afterwards no parameter requires a
            gradient.
    """
    processes = processes or Processes()
    batches = batches_by_length(token_ids, batch_size)
    missing = store.missing(batches)
    # Before any process stores more: all of them have to share out the same batches.
    processes.wait_for_all()
    todo = processes.share(missing)
    use_cache = needs_cache(model)
    # Without logits: the decoder runs all layers, but an adapter has to see each batch.
    run = partial(model, logits_to_keep=1) if hasattr(model, "peft_config") else model.get_decoder()
    device = working_device(model)
    was_training = model.training
    model.eval()
    try:
        with differentiable(model) if backward else torch.inference_mode(), observing as observer:
            for number in track(todo, "Collecting activations", progress):
                sentences = batches[number]
                batch = padded([token_ids[row] for row in sentences], padding_side, device)
                spans = None if own is None else [own[row] for row in sentences]
                counts = counted(batch, spans)
                observer.start_batch(counts)
                if backward:
                    loss_of(model(**batch, use_cache=use_cache).logits, batch, counts).backward()
                else:
                    run(**batch, use_cache=use_cache)
                observer.finish_batch()
                store.add(number, sentences, observer.pooled)
    finally:
        store.close()
        model.train(was_training)


@contextmanager
def differentiable(model: PreTrainedModel) -> Iterator[None]:
    """Gradients reach all that a model computes of its embeddings, and none of its parameters."""
    model.requires_grad_(False)
    hook = model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())
    try:
        with torch.enable_grad():
            yield
    finally:
        hook.remove()


def loss_of(logits: Tensor, batch: Mapping[str, Tensor], counts: Tensor) -> Tensor:
    """The loss of predicting the tokens that count from those before them, in nats, summed over a padded batch.

    Args:
        logits: (batch, longest, vocabulary).
        batch: What `padded` made.
        counts: Mask, int64 (batch, longest), of the tokens that count.
    """
    predicted = counts[:, 1:] * batch["attention_mask"][:, :-1] > 0
    targets = batch["input_ids"][:, 1:][predicted].to(logits.device)
    return F.cross_entropy(logits[:, :-1][predicted.to(logits.device)].float(), targets, reduction="sum")


def batches_by_length(token_ids: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Sentence numbers in batches; the longest first, so that memory runs out at the start or never."""
    order = sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]), reverse=True)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def padded(sentences: Sequence[Sequence[int]], side: PaddingSide, device: torch.device) -> dict[str, Tensor]:
    """Token ids, mask and positions, each int64 (batch, longest); positions count real tokens only."""
    rows = [torch.tensor(sentence, dtype=torch.long) for sentence in sentences]
    input_ids = pad_sequence(rows, batch_first=True, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    batch = {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def counted(batch: Mapping[str, Tensor], own: Sequence[Span] | None) -> Tensor:
    """Mask, int64 (batch, longest), of the real tokens of a padded batch, or of those within the spans."""
    mask, positions = batch["attention_mask"], batch["position_ids"]
    if own is None:
        return mask
    first, behind = torch.tensor(own, device=mask.device).unsqueeze(-1).unbind(dim=1)
    return mask * (positions >= first) * (positions < behind)


def needs_cache(model: PreTrainedModel) -> bool:
    """Whether a model needs a KV cache in every pass: layers that share keys and values find those of others there."""
    return bool(getattr(model.config.get_text_config(), "num_kv_shared_layers", 0))


def working_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes its inputs: its device, or, if its first weights are offloaded and nowhere, the CPU."""
    return torch.device("cpu") if model.device.type == "meta" else model.device
