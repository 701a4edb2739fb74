"""The logits of an export beside the adapter's, with one layer of either model in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from transformers import AutoConfig

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.export.mixture import Mixture
from neuronmoe_plugins.export.request import ExportRequest
from neuronmoe_plugins.export.sources import TensorFiles
from neuronmoe_plugins.export.streaming import empty_model, reader, stream
from neuronmoe_plugins.neurons.activations import needs_cache
from neuronmoe_plugins.neurons.loading import default_device, load_tokenizer, loading
from neuronmoe_plugins.tuner.checkpoint import PEFT_PREFIX
from neuronmoe_plugins.tuner.saved_modules import ROWS

RANDOM_SEQUENCES, RANDOM_TOKENS = 2, 32


@dataclass(frozen=True)
class Comparison:
    """How near the logits of an export are to the adapter's, both in float32.

    Attributes:
        text: On what.
        difference: The largest difference.
        largest: The largest logit.
    """

    text: str
    difference: float
    largest: float

    def __str__(self) -> str:
        return (
            f"On {self.text} its logits differ from the adapter's by at most {self.difference:.1e}; the largest is "
            f"{self.largest:.1f}"
        )


def tokens_to_compare(request: ExportRequest, mixture: Mixture) -> tuple[torch.Tensor, str]:
    """Token ids (texts, tokens) to compare on, and what they are; raises `UserError` for a text without tokens."""
    if request.text is None:
        generator = torch.Generator().manual_seed(0)
        size = (RANDOM_SEQUENCES, min(RANDOM_TOKENS, mixture.base.config.max_position_embeddings))
        ids = torch.randint(mixture.base.config.vocab_size, size, generator=generator)
        for trained in mixture.rows.values():
            new = trained.rows[: size[1] // 2]
            ids[0, : len(new)] = torch.tensor(new)
        return ids, f"{ids.numel()} random{' and new' if mixture.rows else ''} tokens"
    ids = torch.tensor([load_tokenizer(*mixture.tokenizer_home)(request.text)["input_ids"]])
    if not ids.numel():
        raise UserError("--text has no tokens; give some words")
    return ids, f"{ids.numel()} tokens of a given text"


def compare(request: ExportRequest, mixture: Mixture, folder: Path, tokens: torch.Tensor, text: str) -> Comparison:
    """Run one model after the other, layer by layer.

    Args:
        request: Where they run.
        mixture: The adapter on its base.
        folder: The checkpoint.
        tokens: (texts, tokens).
        text: What they are.

    Raises:
        UserError: if the checkpoint lacks what the installed transformers has in its class.
    """
    device = default_device() if request.device in (None, "auto") else str(request.device)
    expected = _logits(_adapter_model(mixture, device), tokens.to(device))
    difference = (_logits(_exported_model(mixture, folder, device), tokens.to(device)) - expected).abs().max()
    return Comparison(text, difference.item(), expected.abs().max().item())


def _adapter_model(mixture: Mixture, device: str) -> Any:
    """The adapter on its base, as PEFT loads it; its tensors stay in the file, which is mapped into memory."""
    base = empty_model(mixture.base.config)
    read = reader(base, mixture.base.files, mixture.base.place)
    for parameter in base.parameters():
        parameter.data = parameter.data.to(mixture.dtype)
    with loading("ADAPTER", mixture.name):
        model: Any = PeftModel.from_pretrained(base, mixture.name, low_cpu_mem_usage=True, torch_device="cpu").eval()
    own = {name for name, parameter in model.named_parameters() if not parameter.is_meta}

    def read_base(name: str) -> torch.Tensor | None:
        if ROWS in name:  # PEFT has put them where the embedding is; a tied head has the embedding's
            in_file = name.rpartition(".")[0]
            return mixture.files.source(in_file if in_file in mixture.rows else next(iter(mixture.rows))).read()
        if name in own:
            return None
        return read(name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".").replace(".token_adapter.", "."))

    # A layer with rows reads the weight of the embedding, which itself does not run.
    at_once = [f"{PEFT_PREFIX}{layer}" for layer in mixture.base.layers]
    at_once += [name for name, module in model.named_modules() if isinstance(module, TrainableTokensLayer)]
    stream(model, at_once, read_base, device)
    return model


def _exported_model(mixture: Mixture, folder: Path, device: str) -> Any:
    """The checkpoint, as transformers' class of its architecture."""
    model = empty_model(AutoConfig.from_pretrained(folder))
    files = TensorFiles(sorted(folder.glob("*.safetensors")))
    stream(model, mixture.base.layers, reader(model, files, "the checkpoint"), device)
    return model


def _logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens, use_cache=needs_cache(model)).logits.float().cpu()
    return logits
