"""Loads the model, adapter and tokenizer of an analysis, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.files import stamp
from neuronmoe_plugins.models import ADAPTER, TOKENIZER, require_model
from neuronmoe_plugins.progress import without_transformers_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(name: str, flag: str = "--model") -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; raises `UserError`, which begins with what named the model, if it cannot be had."""
    # Of a folder without one, transformers makes up an empty one.
    require_model(flag, name, TOKENIZER)
    from transformers import AutoTokenizer

    with loading(flag, name):
        return AutoTokenizer.from_pretrained(name)


def load_model(
    name: str,
    dtype: str,
    device: str,
    adapter: str | None = None,
    adapter_flag: str = "--adapter",
    needs_head: bool = True,
) -> PreTrainedModel:
    """Load a causal language model, in evaluation mode.

    Args:
        name: What `from_pretrained` takes: a local folder or a name on the hub.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for that of the files.
        device: A torch device, as in `cpu` or `cuda:0`, or `auto` for as many as the model needs.
        adapter: A PEFT adapter to put on it, folder or hub name.
        adapter_flag: What names that, for errors.
        needs_head: Whether what is computed depends on the head's weights, which otherwise may be missing.

    Returns:
        The model, or the PEFT model around it.

    Raises:
        UserError: if the model, the adapter or the device cannot be had, or the files lack some of their weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from neuronmoe_plugins.host_versions import weights_dtype

    loader: Any = AutoModelForCausalLM  # whose annotation does not know the second result
    how = weights_dtype(dtype if dtype == "auto" else getattr(torch, dtype))
    if device == "auto":
        how |= {"device_map": "auto"}
    with loading("--model", name), without_transformers_bars():
        model, loaded = loader.from_pretrained(name, output_loading_info=True, **how)
    _require_whole("--model", name, loaded["missing_keys"], needs_head)
    if adapter is not None:
        model = _with_adapter(model, adapter, adapter_flag, needs_head)
    if device != "auto" and not getattr(model, "is_quantized", False):
        with _using(device):
            model.to(device)
    return model.eval()


def require_device(device: str | None) -> None:
    """Find out whether a device that was named can be used, before a model is loaded; raises `UserError` if not."""
    if device not in (None, "auto", "cpu"):
        import torch

        with _using(device):
            torch.empty(0, device=device)


@contextmanager
def _using(device: str | None) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, AssertionError) as error:  # torch asserts when it was built without CUDA
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error


def _with_adapter(model: Any, adapter: str, flag: str, needs_head: bool) -> Any:
    from peft import PeftModel, get_peft_model_state_dict, load_peft_weights

    from neuronmoe_plugins.tuner.fingerprint import refused_on_other_base
    from neuronmoe_plugins.tuner.reference_format import tensors_from_published

    with loading(flag, adapter), refused_on_other_base():
        adapted = PeftModel.from_pretrained(model, adapter)
        # Those of a published one by the names that they get when they are loaded.
        in_file = set(tensors_from_published(load_peft_weights(adapter, device="cpu")))
    needed = get_peft_model_state_dict(adapted).keys()
    _require_whole(flag, adapter, sorted(needed - in_file), needs_head)
    if unused := sorted(in_file - needed):
        raise UserError(f"{flag} {adapter} is of another model, which has a place for {unused[0]}")
    return adapted


def _require_whole(flag: str, name: str, missing: Sequence[str], needs_head: bool) -> None:
    """Raise `UserError` for weights that would be random; those of the head have no effect on an activation."""
    names = sorted(key for key in missing if needs_head or "lm_head" not in key)
    if names:
        raise UserError(f"{flag} {name} lacks {len(names)} weights of its model, among them {names[0]}")


@contextmanager
def loading(flag: str, name: str) -> Iterator[None]:
    """Raise `UserError` for whatever the libraries make of a damaged file, which has no common type."""
    try:
        yield
    except Exception as error:
        message = one_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{flag} {name} cannot be loaded: {message}") from error


def describe_sources(model: str, adapter: str | None) -> dict[str, Any]:
    """What a model and its adapter are loaded from: names, local files, commits on the hub; other ones, other weights.

    Raises:
        UserError: if one cannot be had.
    """
    from transformers import AutoConfig
    from transformers.utils import cached_file

    with loading("--model", model):
        commit = getattr(AutoConfig.from_pretrained(model), "_commit_hash", None)
    sources: dict[str, Any] = {"model": [model, _local_files(model), commit], "adapter": adapter}
    if adapter:
        cached = None
        if not Path(adapter).is_dir():
            with loading("--adapter", adapter):
                cached = cached_file(adapter, ADAPTER[0])
        # The hub's cache has a folder per commit.
        sources["adapter"] = [adapter, _local_files(adapter), cached and Path(cached).parent.name]
    return sources


def _local_files(folder: str) -> dict[str, list[int]]:
    """Size and modification time of the files; empty for a name on the hub."""
    if not Path(folder).is_dir():
        return {}
    return {path.name: stamp(path) for path in sorted(Path(folder).iterdir()) if path.is_file()}


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
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int
) -> tuple[list[list[int]], list[bool]]:
    """Token ids of each sentence, cut to `max_tokens` (the BOS counts, where the tokenizer adds one).

    Returns:
        the token ids, and which sentences were cut.

    Raises:
        UserError: for a tokenizer that cannot tell sentences apart.
    """
    full = tokenizer(list(texts), verbose=False)["input_ids"]
    cut = [list(ids[:max_tokens]) for ids in full]
    if len(set(texts)) > 1 and len(set(map(tuple, cut))) == 1:
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer gives all sentences the same tokens, {cut[0]}; put the model's "
            "tokenizer files there, or pass more --max-tokens"
        )
    return cut, [len(ids) > max_tokens for ids in full]


def require_places(model: PreTrainedModel, token_ids: Sequence[Sequence[int]]) -> None:
    """Raise `UserError` if a sentence is longer than the model has positions, or has a token that it does not have."""
    config = model.config.get_text_config()
    positions, tokens = (getattr(config, name, None) for name in ("max_position_embeddings", "vocab_size"))
    longest, largest = max(map(len, token_ids)), max(map(max, token_ids))
    if positions is not None and longest > positions:
        raise UserError(
            f"a sentence has {longest} tokens, the model {positions} positions; pass --max-tokens {positions}"
        )
    if tokens is not None and largest >= tokens:
        raise UserError(
            f"the tokenizer gives the token {largest}, but the model's {tokens} tokens end at {tokens - 1}; put the "
            "model's own tokenizer into its folder"
        )
