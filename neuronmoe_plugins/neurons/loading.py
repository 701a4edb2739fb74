"""Loads the model, adapter and tokenizer of an analysis, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import stamp

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; raises `UserError` if it cannot be had."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # what the libraries make of a damaged file has no common type
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
        UserError: if the model, the adapter or the device cannot be had, or the files lack some of their weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    placement = {"device_map": "auto"} if device == "auto" else {}
    loader: Any = AutoModelForCausalLM  # whose annotation does not know the second result
    try:
        model, loaded = loader.from_pretrained(name, dtype=getattr(torch, dtype), output_loading_info=True, **placement)
    except Exception as error:  # what the libraries make of a damaged file has no common type
        raise _cannot_load("model", name, error) from error
    _require_whole("model", name, loaded["missing_keys"])
    if adapter is not None:
        model = _with_adapter(model, adapter)
    if not placement and not getattr(model, "is_quantized", False):
        try:
            model.to(device)
        except (RuntimeError, AssertionError) as error:  # torch asserts when it was built without CUDA
            raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    evaluated: PreTrainedModel = model.eval()
    return evaluated


def _with_adapter(model: Any, adapter: str) -> Any:
    from peft import PeftModel, get_peft_model_state_dict

    try:
        adapted = PeftModel.from_pretrained(model, adapter)
        in_file = _names_in_file(adapter)
    except Exception as error:  # as above
        raise _cannot_load("adapter", adapter, error) from error
    needed = get_peft_model_state_dict(adapted).keys()
    _require_whole("adapter", adapter, sorted(needed - in_file))
    if unused := sorted(in_file - needed):
        raise UserError(f"--adapter {adapter} is of another model, which has a place for {unused[0]}")
    return adapted


def _names_in_file(adapter: str) -> set[str]:
    """The adapter's tensors, those of a published one by the names that they get when they are loaded."""
    from peft import load_peft_weights

    from neuronmoe_plugins.tuner.reference_format import tensors_from_published

    return set(tensors_from_published(load_peft_weights(adapter, device="cpu")))


def _require_whole(option: str, name: str, missing: Sequence[str]) -> None:
    """Raise `UserError` for weights that would be random; those of the head have no effect on a neuron."""
    names = sorted(key for key in missing if "lm_head" not in key)
    if names:
        raise UserError(f"--{option} {name} lacks {len(names)} weights of its model, among them {names[0]}")


def _cannot_load(option: str, name: str, error: Exception) -> UserError:
    return UserError(f"--{option} {name} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())}")


def describe_sources(model: str, adapter: str | None) -> dict[str, Any]:
    """What a model and its adapter are loaded from: names, local files, commits on the hub; other ones, other weights.

    Raises:
        UserError: if one cannot be had.
    """
    return {
        "model": [model, _local_files(model), _model_commit(model)],
        "adapter": adapter and [adapter, _local_files(adapter), _adapter_commit(adapter)],
    }


def _local_files(folder: str) -> dict[str, list[int]]:
    """Size and modification time of the files; empty for a name on the hub."""
    if not Path(folder).is_dir():
        return {}
    return {path.name: stamp(path) for path in sorted(Path(folder).iterdir()) if path.is_file()}


def _model_commit(name: str) -> str | None:
    """The commit of a model on the hub; None for a local folder."""
    from transformers import AutoConfig

    try:
        return getattr(AutoConfig.from_pretrained(name), "_commit_hash", None)
    except Exception as error:  # as above
        raise _cannot_load("model", name, error) from error


def _adapter_commit(name: str) -> str | None:
    """The commit of an adapter on the hub; None for a local folder."""
    if Path(name).is_dir():
        return None
    from transformers.utils import cached_file

    try:
        path = cached_file(name, "adapter_config.json")
    except Exception as error:  # as above
        raise _cannot_load("adapter", name, error) from error
    return None if path is None else Path(path).parent.name


def default_device(local_rank: int = 0) -> str:
    """The CUDA device of the process with this number on its machine, where torch sees any, else `cpu`.

    Raises:
        UserError: if there are fewer devices than processes.
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"there are {torch.cuda.device_count()} GPUs, but torchrun started more processes; pass a smaller "
            "--nproc-per-node"
        )
    return f"cuda:{local_rank}"


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], names: Sequence[str], max_tokens: int
) -> tuple[list[list[int]], list[bool]]:
    """Token ids of each sentence, cut to `max_tokens` (the BOS counts, where the tokenizer adds one).

    Returns:
        the token ids, and which sentences were cut.

    Raises:
        UserError: for a sentence without any token, or a tokenizer that cannot tell sentences apart: transformers makes
            an empty one for a folder that has none.
    """
    full = tokenizer(list(texts), verbose=False)["input_ids"]
    cut = [list(ids[:max_tokens]) for ids in full]
    if len(set(texts)) > 1 and len(set(map(tuple, cut))) == 1:
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer gives all sentences the same tokens, {cut[0]}; put the model's "
            "tokenizer files there, or pass more --max-tokens"
        )
    for name, ids in zip(names, cut, strict=True):
        if not ids:
            raise UserError(f"{name}: the model's tokenizer gives no token for this sentence; remove it")
    return cut, [len(ids) > max_tokens for ids in full]


def require_positions(model: PreTrainedModel, token_ids: Sequence[Sequence[int]]) -> None:
    """Raise `UserError` if a sentence is longer than the model has positions."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(ids) for ids in token_ids)
    if positions is not None and longest > positions:
        raise UserError(
            f"a sentence has {longest} tokens, the model {positions} positions; pass --max-tokens {positions}"
        )
