"""Loads the model and tokenizer of an analysis and turns sentences into token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neuronmoe_plugins.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neuronmoe_plugins.neurons.corpora import Corpus

DTYPES = ("float32", "bfloat16", "float16")


def load_model(name: str, dtype: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model with its tokenizer, in evaluation mode.

    Args:
        name: what `from_pretrained` takes: a local folder or a name on the hub.
        dtype: one of `DTYPES`.
        device: a torch device, as in `cpu` or `cuda:0`.

    Raises:
        UserError: the model, its tokenizer or the device cannot be had.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"--model {name} cannot be loaded: {' '.join(str(error).split())}") from error
    try:
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the signature of Module.to
    except (RuntimeError, AssertionError) as error:  # torch asserts when it was built without CUDA
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    return model.eval(), tokenizer


def default_device() -> str:
    """`cuda` where torch sees a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def tokenize(tokenizer: PreTrainedTokenizerBase, corpus: Corpus, max_tokens: int) -> tuple[list[list[int]], int]:
    """Token ids of each sentence, cut to `max_tokens` (the BOS counts, where the tokenizer adds one).

    Returns:
        the token ids, and how many sentences were cut. Raises `UserError` for a sentence without any token.
    """
    full = tokenizer([sentence.text for sentence in corpus.sentences], verbose=False)["input_ids"]
    for name, ids in zip(corpus.names(), full, strict=True):
        if not ids:
            raise UserError(f"{name}: the model's tokenizer gives no token for this sentence; remove it")
    return [ids[:max_tokens] for ids in full], sum(len(ids) > max_tokens for ids in full)


def require_positions(model: PreTrainedModel, token_ids: Sequence[Sequence[int]]) -> None:
    """Raise `UserError` if a sentence is longer than the model has positions."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(ids) for ids in token_ids)
    if positions is not None and longest > positions:
        raise UserError(
            f"a sentence has {longest} tokens, the model {positions} positions; pass --max-tokens {positions}"
        )
