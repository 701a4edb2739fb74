"""Mean activation of every neuron for every sentence, collected by forward hooks on a decoder's projections.

A neuron is one output of a q, k, v, o, gate, up or down projection (gate before its activation function).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from neuronmoe_plugins.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neuronmoe_plugins.neurons.arrays import FloatArray, ModuleKey

PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
PaddingSide = Literal["left", "right"]


def find_projections(model: PreTrainedModel) -> dict[ModuleKey, nn.Module]:
    """The seven projections of every decoder layer, in layer order.

    Raises `UserError` that lists what was looked for, if the model has no decoder layers or one lacks a projection.
    """
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise UserError(
            f"{type(model).__name__} has no decoder layers to analyse: looked for {type(decoder).__name__}.layers "
            f"with {', '.join(PROJECTIONS)} in each"
        )
    found: dict[ModuleKey, nn.Module] = {}
    for index, layer in enumerate(layers):
        modules = dict(layer.named_modules())
        missing = [name for name in PROJECTIONS if not hasattr(modules.get(name), "weight")]
        if missing:
            raise UserError(
                f"{type(model).__name__} is not a decoder with gated MLPs: layer {index} ({type(layer).__name__}) has "
                f"no {', '.join(missing)}; looked for {', '.join(PROJECTIONS)}"
            )
        found.update({(index, name): modules[name] for name in PROJECTIONS})
    return found


def pool_activations(
    model: PreTrainedModel,
    token_ids: Sequence[Sequence[int]],
    *,
    batch_size: int,
    padding_side: PaddingSide = "right",
    folder: Path | None = None,
    progress: bool = False,
) -> dict[ModuleKey, FloatArray]:
    """Mean of every neuron's activation over the tokens of each sentence.

    Args:
        model: a causal language model with gated MLPs, on its device; it is run in evaluation mode, without gradients.
        token_ids: one non-empty list of token ids per sentence; every given token counts, a BOS included.
        batch_size: sentences per forward pass; sentences of like length share a pass, the longest come first.
        padding_side: where shorter sentences are padded; masked, it does not change the result.
        folder: keep the result in memory-mapped files of this folder instead of in memory.
        progress: show a progress bar on standard error.

    Returns:
        for each projection float32 (sentences, units), sentences in the order given.
    """
    projections = find_projections(model)
    if folder is not None:
        _require_space(folder, len(token_ids), projections)
    pooled = {key: _allocate(len(token_ids), module, key, folder) for key, module in projections.items()}
    decoder = model.get_decoder()
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), _recording(projections) as recorder:
            batches = _batches_by_length(token_ids, batch_size)
            console = Console(stderr=True)
            for rows in track(batches, "Collecting activations", console=console, disable=not progress):
                batch = _padded([token_ids[row] for row in rows], padding_side, model.device)
                recorder.mask = batch["attention_mask"].bool()
                decoder(**batch, use_cache=False)
                for key, means in recorder.means.items():
                    pooled[key][rows] = means.cpu().numpy()
    finally:
        model.train(was_training)
    return pooled


def _units(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]


def _require_space(folder: Path, sentences: int, projections: dict[ModuleKey, nn.Module]) -> None:
    """Raise `UserError` if the files will not fit: a memory-mapped write to a full disk kills the process."""
    needed = 4 * sentences * sum(map(_units, projections.values()))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, the activations need {needed / 1e9:.1f} GB while they are "
            "analysed; make room or pass fewer --samples"
        )


def _allocate(sentences: int, module: nn.Module, key: ModuleKey, folder: Path | None) -> FloatArray:
    shape = (sentences, _units(module))
    if folder is None:
        return np.empty(shape, dtype=np.float32)
    return np.lib.format.open_memmap(folder / f"{key[0]}.{key[1]}.npy", mode="w+", dtype=np.float32, shape=shape)


def _batches_by_length(token_ids: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Sentence numbers in batches; the longest first, so that memory runs out at the start or never."""
    order = sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]), reverse=True)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _padded(sentences: Sequence[Sequence[int]], side: PaddingSide, device: torch.device) -> dict[str, Tensor]:
    """Token ids, mask and positions, each int64 (batch, longest); positions count real tokens only."""
    longest = max(len(sentence) for sentence in sentences)
    input_ids = torch.zeros(len(sentences), longest, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, sentence in enumerate(sentences):
        real = slice(0, len(sentence)) if side == "right" else slice(longest - len(sentence), longest)
        input_ids[row, real] = torch.tensor(sentence, dtype=torch.long)
        mask[row, real] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    batch = {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions}
    return {name: tensor.to(device) for name, tensor in batch.items()}


class _Recorder:
    """Pools each hooked output over the real tokens of the batch at hand."""

    def __init__(self) -> None:
        self.mask = torch.empty(0, 0, dtype=torch.bool)
        self.means: dict[ModuleKey, Tensor] = {}

    def record(self, key: ModuleKey, output: Tensor) -> None:
        """Keep the float32 mean of `output` (batch, tokens, units) over unmasked tokens.

        Padding is filled with zeros, not multiplied by zero: it may hold NaN where attention saw no token.
        """
        summed = output.float().masked_fill(~self.mask[..., None], 0.0).sum(dim=1, dtype=torch.float64)
        self.means[key] = summed / self.mask.sum(dim=1, keepdim=True)


@contextmanager
def _recording(projections: dict[ModuleKey, nn.Module]) -> Iterator[_Recorder]:
    recorder = _Recorder()

    def hook_for(key: ModuleKey) -> Any:
        return lambda module, inputs, output: recorder.record(key, output)

    handles = [module.register_forward_hook(hook_for(key)) for key, module in projections.items()]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
