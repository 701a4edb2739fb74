"""Loads the model and tokenizer of an analysis and turns sentences into token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neuronmoe_plugins.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; raises `UserError` if it cannot be had."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _cannot_load("model", name, error) from error


def load_model(name: str, dtype: str, device: str, adapter: str | None = None) -> PreTrainedModel:
    """Load a causal language model, in evaluation mode.

    Args:
        name: What `from_pretrained` takes: a local folder or a name on the hub.
        dtype: `float32`, `bfloat16` or `float16`.
        device: A torch device, as in `cpu` or `cuda:0`, or `auto` for as many as the model needs.
        adapter: A PEFT adapter to put on it, folder or hub name.

    Returns:
        The model, or the PEFT model around it.

    Raises:
        UserError: if the model, the adapter or the device cannot be had.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    placement = {"device_map": "auto"} if device == "auto" else {}
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype), **placement)
    except (OSError, ValueError, SafetensorError) as error:
        raise _cannot_load("model", name, error) from error
    if adapter is not None:
        model = _with_adapter(model, adapter)
    if not placement:
        try:
            model.to(device)
        except (RuntimeError, AssertionError) as error:  # torch asserts when it was built without CUDA
            raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    loaded: PreTrainedModel = model.eval()
    return loaded


def _with_adapter(model: Any, adapter: str) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        return PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot_load("adapter", adapter, error) from error


def _cannot_load(option: str, name: str, error: Exception) -> UserError:
    return UserError(f"--{option} {name} cannot be loaded: {' '.join(str(error).split())}")


def default_device(local_rank: int = 0) -> str:
    """The GPU of the process with this number on its machine, where torch sees one, else `cpu`."""
    import torch

    return f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], names: Sequence[str], max_tokens: int
) -> tuple[list[list[int]], list[bool]]:
    """Token ids of each sentence, cut to `max_tokens` (the BOS counts, where the tokenizer adds one).

    Returns:
        the token ids, and which sentences were cut. Raises `UserError` for a sentence without any token.
    """
    full = tokenizer(list(texts), verbose=False)["input_ids"]
    for name, ids in zip(names, full, strict=True):
        if not ids:
            raise UserError(f"{name}: the model's tokenizer gives no token for this sentence; remove it")
    return [ids[:max_tokens] for ids in full], [len(ids) > max_tokens for ids in full]


def require_positions(model: PreTrainedModel, token_ids: Sequence[Sequence[int]]) -> None:
    """Raise `UserError` if a sentence is longer than the model has positions."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(ids) for ids in token_ids)
    if positions is not None and longest > positions:
        raise UserError(
            f"a sentence has {longest} tokens, the model {positions} positions; pass --max-tokens {positions}"
        )
