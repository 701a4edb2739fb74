"""The base model by its configuration alone, and whether an adapter is one of it, before any weight is loaded."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from llamafactory.extras.misc import use_modelscope, use_openmind
from peft import inject_adapter_in_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import CONFIG_NAME

from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.feed_forward import find_feed_forwards
from neuronmoe_plugins.files import read_json
from neuronmoe_plugins.models import ADAPTER, open_weights, require_model, weight_in_files
from neuronmoe_plugins.tuner import MoeConfig
from neuronmoe_plugins.tuner.checkpoint import from_file
from neuronmoe_plugins.tuner.fingerprint import fingerprint, require_base, require_tokens
from neuronmoe_plugins.tuner.reference_format import tensors_from_published


def check_adapter_fits(
    model_args: Any, config: PretrainedConfig, base: PreTrainedModel, adapter: MoeConfig
) -> list[str]:
    """Refuse an adapter whose tensors are not those that its configuration has in the base model, or of another base.

    An adapter on the hub whose weights are not on this machine yet is looked at when it is loaded.

    Args:
        model_args: The host's model arguments, with `adapter_name_or_path`.
        config: The base model's configuration.
        base: The base model on the meta device; the adapter is put into it.
        adapter: The adapter's configuration, which goes into the base model, too.

    Returns:
        Warnings.

    Raises:
        UserError: naming the adapter, and the tensors or models that do not fit.
    """
    path, folder = model_args.adapter_name_or_path[-1], Path(model_args.adapter_folder or "")
    weights = _local_file(path, str(folder / SAFETENSORS_WEIGHTS_NAME), model_args)
    if weights is None and Path(path).is_dir() and not (path / folder / WEIGHTS_NAME).is_file():
        raise UserError(f"adapter_name_or_path: {path / folder} has no {SAFETENSORS_WEIGHTS_NAME}: train it to its end")
    try:
        inject_adapter_in_model(adapter, base, "default", low_cpu_mem_usage=True)
        if weights is not None:
            from_file(tensors_from_published(_header(weights)), base, "default")
    except UserError as error:
        raise UserError(f"adapter_name_or_path: {path} is no adapter of this base model: {error}") from error
    return _check_named_base(model_args, config, base, adapter)


def _local_file(name: str, file: str, model_args: Any) -> Path | None:
    """A file of a model or adapter, in a folder or the hub's cache; None if it is not on this machine."""
    if Path(name).is_dir():
        return Path(name, file) if Path(name, file).is_file() else None
    try:
        found = try_to_load_from_cache(name, file, model_args.cache_dir, model_args.model_revision)
    except HFValidationError:  # a path that is not there is no hub name either
        return None
    return Path(found) if isinstance(found, str) else None


def require_there(key: str, name: str, file: str, model_args: Any) -> None:
    """Refuse a model or adapter that is not there before the host asks a hub for each of its files.

    Args:
        key: The argument that names it.
        name: A folder, or a name on the hub.
        file: What it needs to have.
        model_args: The host's model arguments.

    Raises:
        UserError: if it is neither on this machine nor on the hub, or is a path that does not exist.
    """
    of_another_hub = use_modelscope() or use_openmind() or model_args.hf_hub_token
    if not Path(name).exists() and not of_another_hub and _local_file(name, file, model_args) is None:
        require_model(f"{key}:", name, (file,))


def _header(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, on the meta device."""
    with open_weights(file) as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _check_named_base(
    model_args: Any, config: PretrainedConfig, base: PreTrainedModel, adapter: MoeConfig
) -> list[str]:
    """Compare the base model with the adapter's, as far as the files on this machine, or the adapter, tell that."""
    named, used = adapter.base_model_name_or_path, model_args.model_name_or_path
    if named == used or (named and Path(named).exists() and Path(used).exists() and Path(named).samefile(used)):
        named = None
    what = f"the adapter in {model_args.adapter_name_or_path[-1]} is one of {named or 'another model'}"
    other = None if named is None else _config_here(named, model_args)
    if other is not None and other.model_type != config.model_type:
        raise UserError(
            f"model_name_or_path: {what}, a {other.model_type} model, but {used} is a {config.model_type} one"
        )
    saved = adapter.made_on
    if not saved and named is not None and other is not None:
        saved = fingerprint(base, find_feed_forwards(base), partial(_weight_in_files, named, model_args))
    is_compared = require_base(f"model_name_or_path: {what}", saved, used, partial(_weight_in_files, used, model_args))
    if named is None or is_compared:
        return []
    place = "" if other is not None else ", which is not on this machine"
    return [f"{what}{place}: make sure that {used} is the same model"]


def check_resumed_base(model_args: Any, base: PretrainedConfig, checkpoint: Path) -> None:
    """Refuse to go on from a checkpoint with another base model, which the host loads its adapter into.

    Raises:
        UserError: naming both.
    """
    used, file = model_args.model_name_or_path, checkpoint / ADAPTER[0]
    saved = read_json(file) if file.exists() else {}
    what = f"{checkpoint} is of a run on another base model"
    require_tokens(what, saved.get("base_new_tokens"), used, base)
    require_base(what, saved.get("base_fingerprint"), used, partial(_weight_in_files, used, model_args))


def _config_here(name: str, model_args: Any) -> PretrainedConfig | None:
    try:
        return AutoConfig.from_pretrained(name, cache_dir=model_args.cache_dir, local_files_only=True)
    except (OSError, ValueError):
        return None


def _weight_in_files(model: str, model_args: Any, name: str) -> Any:
    return weight_in_files(lambda file: _local_file(model, file, model_args), name)


def load_base_config(model_args: Any) -> PretrainedConfig:
    """The configuration of `model_name_or_path`.

    Raises:
        UserError: if there is none, or it is that of a quantised model whose MLPs cannot be copied.
    """
    from llamafactory.model.loader import load_config

    name = model_args.model_name_or_path
    require_there("model_name_or_path", name, CONFIG_NAME, model_args)
    try:
        config = load_config(model_args)
    except (OSError, ValueError) as error:
        raise UserError(f"model_name_or_path: {name} has no usable config.json: {one_line(error)}") from error
    quantised = getattr(config, "quantization_config", None)
    is_four_bit = any(_setting(quantised, name) for name in ("load_in_4bit", "_load_in_4bit"))
    if quantised and not is_four_bit:
        method = _setting(quantised, "quant_method")
        raise UserError(
            f"model_name_or_path: {name} is quantised ({getattr(method, 'value', method)}): take it unquantised, or in "
            "4 bits with bitsandbytes"
        )
    return config


def empty_base_model(model_args: Any, config: PretrainedConfig) -> PreTrainedModel | None:
    """The base model without memory for its weights; None for an architecture that transformers does not have.

    Raises:
        UserError: if its MLPs cannot become mixtures.
    """
    classes = (AutoModelForImageTextToText._model_mapping, AutoModelForCausalLM._model_mapping)
    model_class: Any = next((known[type(config)] for known in classes if type(config) in known), None)
    if model_class is None:
        return None
    with torch.device("meta"):
        # Not from_config, which DeepSpeed's ZeRO-3 extends.
        model: PreTrainedModel = model_class(copy.deepcopy(config))
    try:
        find_feed_forwards(model)
    except ValueError as error:
        raise UserError(f"model_name_or_path: {model_args.model_name_or_path}: {one_line(error)}") from error
    return model


def _setting(quantised: Any, name: str) -> Any:
    return quantised.get(name) if isinstance(quantised, dict) else getattr(quantised, name, None)
