"""The files of a dense model, whose tensors are read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.feed_forward import FeedForward, find_feed_forwards
from neuronmoe_plugins.models import local_file, open_weights, require_model
from neuronmoe_plugins.reading import read_json_object
from neuronmoe_plugins.tuner.fingerprint import fingerprint

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Source:
    """A tensor that is read when it is written.

    Attributes:
        shape: Its sizes.
        read: Gives it, on the CPU, in whatever floating-point dtype it comes in.
    """

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def zeros(*shape: int) -> Source:
    """A tensor of nothing."""
    return Source(shape, lambda: torch.zeros(shape))


class TensorFiles:
    """The tensors of safetensors files by name.

    Args:
        paths: The files.

    Raises:
        UserError: if one cannot be read.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._file_of: dict[str, Any] = {}
        for path in paths:
            file = open_weights(path)
            self._file_of |= dict.fromkeys(file.keys(), file)

    def names(self) -> set[str]:
        """Those of all tensors."""
        return set(self._file_of)

    def slice(self, name: str) -> Any:
        """A tensor, of which parts can be read; None if it is not there."""
        return self._file_of[name].get_slice(name) if name in self._file_of else None

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's sizes."""
        return tuple(self.slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype | None:
        """A tensor's dtype; None where it is not one of floating-point numbers, as in a quantised model."""
        return DTYPES.get(self.slice(name).get_dtype())

    def row(self, name: str, index: int) -> torch.Tensor:
        """One entry of a stack of tensors."""
        row: torch.Tensor = self.slice(name)[index : index + 1][0]
        return row

    def source(self, name: str) -> Source:
        """A whole tensor."""
        return Source(self.shape(name), lambda: self._file_of[name].get_tensor(name))


class BaseModel:
    """A dense model's configuration and files.

    Args:
        flag: What names it.
        name: A folder, or a name on the hub.

    Raises:
        UserError: if it cannot be had, is quantised, has no MLPs that could have become mixtures, or lacks weights.
    """

    def __init__(self, flag: str, name: str) -> None:
        require_model(flag, name)
        self.name, self.place = name, f"{flag} {name}"
        try:
            self.config: PretrainedConfig = AutoConfig.from_pretrained(name)
            with torch.device("meta"):
                self.model = AutoModelForCausalLM.from_config(self.config)
            self.mlps: dict[int, FeedForward] = find_feed_forwards(self.model)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.place}: {one_line(error)}") from error
        self.is_tied = bool(self.config.tie_word_embeddings)
        heads = {"lm_head.weight"} if self.is_tied else set()
        self.names = [key for key in self.model.state_dict() if key not in heads]
        self.files = TensorFiles(_weight_files(self.place, name))
        if lacking := [key for key in self.names if key not in self.files.names()]:
            raise UserError(f"{self.place} lacks {len(lacking)} weights of its model, among them {lacking[0]}")
        quantised = [key for key in self.names if self.files.dtype(key) is None]
        if quantised or getattr(self.config, "quantization_config", None):
            raise UserError(
                f"{self.place} is quantised, and its weights are copied in floating point: name the model that it was "
                "quantised from"
            )

    @cached_property
    def mlp_layer(self) -> dict[str, int]:
        """Name of a tensor of an MLP -> its decoder layer."""
        prefixes = {f"{mlp.name}.": layer for layer, mlp in self.mlps.items()}
        return {name: layer for name in self.names for prefix, layer in prefixes.items() if name.startswith(prefix)}

    @property
    def layers(self) -> list[str]:
        """Names of the decoder layers."""
        return [mlp.name.rpartition(".")[0] for mlp in self.mlps.values()]

    def fingerprint(self) -> dict[str, str]:
        """By which an adapter knows it."""
        return fingerprint(self.model, self.mlps, self.files.slice)

    @property
    def dtype(self) -> torch.dtype:
        """That of its MLPs."""
        dtype = self.files.dtype(next(iter(self.mlp_layer)))
        assert dtype is not None, "a quantised base is refused"
        return dtype


def _weight_files(place: str, name: str) -> list[Path]:
    index = local_file(name, SAFE_WEIGHTS_INDEX_NAME)
    if index is not None:
        shards = set(read_json_object(index, "it lists the model's files")["weight_map"].values())
    else:
        shards = {SAFE_WEIGHTS_NAME}
    found = {shard: local_file(name, shard) for shard in sorted(shards)}
    if missing := [shard for shard, path in found.items() if path is None]:
        raise UserError(
            f"{place} has no {missing[0]}: weights are read as safetensors alone; load and save the model with "
            "transformers once"
        )
    return [path for path in found.values() if path is not None]
