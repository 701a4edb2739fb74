"""`neuronmoe convert`: an adapter's files from the published format to this package's, or back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import new_directory, new_folder, writing
from neuronmoe_plugins.models import ADAPTER, ADAPTER_WEIGHTS, adapter_weights, read_adapter_config, write_adapter

CONFIG = ADAPTER[0]
# Metadata of the weights: the configuration that they were converted from, so that converting back restores it.
SOURCE = "neuronmoe_source_config"


def convert(source: Path, output: Path) -> str:
    """Rewrite an adapter in the other format; both directions lose nothing.

    Args:
        source: Folder with `adapter_config.json` and `adapter_model.safetensors`, in either format.
        output: Folder to write the two files into.

    Returns:
        The format written, `published` or `neuronmoe-plugins`.

    Raises:
        UserError: if the folder holds no `moe` adapter, the output exists, or tensors are missing.
    """
    new_folder("OUT", output)
    config = read_adapter_config(source / CONFIG)
    with adapter_weights(source) as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    from neuronmoe_plugins.tuner.reference_format import is_published, tensors_from_published, tensors_to_published

    to_published = not is_published(tensors)
    layers = sorted({int(match[1]) for name in tensors if (match := re.search(r"\.(\d+)\.\w+\.moe_", name))})
    if not layers:
        raise UserError(f"{source / ADAPTER_WEIGHTS} has no experts: it is not the adapter of a mixture")
    tensors = tensors_to_published(tensors) if to_published else tensors_from_published(tensors)
    converted = _convert_config(config, layers, to_published)
    if SOURCE in metadata:
        converted = _restore(config, converted, json.loads(metadata[SOURCE]), layers, to_published)
    with writing(f"OUT {output}"), new_directory(output) as folder:
        write_adapter(folder, tensors, converted, **{SOURCE: json.dumps(config)})
    return "published" if to_published else "neuronmoe-plugins"


def _convert_config(config: dict[str, Any], layers: list[int], to_published: bool) -> dict[str, Any]:
    from neuronmoe_plugins.tuner.config import MoeConfig
    from neuronmoe_plugins.tuner.reference_format import config_from_published, config_to_published

    try:
        checked = MoeConfig.from_peft_type(**config).to_dict()
    except ValueError as error:
        raise UserError(f"{CONFIG}: {error}") from error
    beside = [name for name in ("modules_to_save", "trainable_token_indices") if checked[name]]
    if to_published and beside:
        raise UserError(f"{CONFIG}: the adapter has {' and '.join(beside)}, which the published format cannot hold")
    return config_to_published(checked, layers) if to_published else config_from_published(config)


def _restore(
    config: dict[str, Any], converted: dict[str, Any], source: dict[str, Any], layers: list[int], to_published: bool
) -> dict[str, Any]:
    """The configuration that this one was once converted from, with what has been changed in between."""
    if config == _convert_config(source, layers, not to_published):
        return source
    return source | converted
