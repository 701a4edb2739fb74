"""`neuronmoe convert`: an adapter's files from the published format to this package's, or back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import new_directory, writable_folder, write_json, writing
from neuronmoe_plugins.reading import read_json_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
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
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists already: choose another folder, or remove it")
    writable_folder("OUT", output)
    config = _read_config(source / CONFIG)
    tensors, metadata = _read_tensors(source / WEIGHTS)
    from neuronmoe_plugins.tuner.reference_format import is_published, tensors_from_published, tensors_to_published

    to_published = not is_published(tensors)
    layers = sorted({int(match[1]) for name in tensors if (match := re.search(r"\.(\d+)\.\w+\.moe_", name))})
    if not layers:
        raise UserError(f"{source / WEIGHTS} has no experts: it is not the adapter of a mixture")
    tensors = tensors_to_published(tensors) if to_published else tensors_from_published(tensors)
    converted = _convert_config(config, layers, to_published)
    if SOURCE in metadata:
        converted = _restore(config, converted, json.loads(metadata[SOURCE]), layers, to_published)
    metadata = {"format": "pt", SOURCE: json.dumps(config)}
    from safetensors.torch import save_file

    with writing(f"OUT {output}"), new_directory(output) as folder:
        save_file(tensors, folder / WEIGHTS, metadata=metadata)
        write_json(folder / CONFIG, converted)
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


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json_object(path, "name the folder of an adapter")
    if config.get("peft_type") != "MOE":
        raise UserError(f"{path} is not the configuration of a moe adapter: its peft_type is not MOE")
    return config


def _read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    if not path.is_file():
        raise UserError(f"{path} is missing; adapters in adapter_model.bin (pickle) are not read")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
