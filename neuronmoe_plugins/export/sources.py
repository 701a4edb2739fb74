"""Where an export's tensors come from: the files of the base model and of the adapter, read one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.feed_forward import FeedForward, find_feed_forwards
from neuronmoe_plugins.models import ADAPTER, require_model
from neuronmoe_plugins.reading import read_json_object
from neuronmoe_plugins.tuner import MoeConfig
from neuronmoe_plugins.tuner.checkpoint import PEFT_PREFIX
from neuronmoe_plugins.tuner.experts.stacks import DOWN, UP
from neuronmoe_plugins.tuner.fingerprint import has_other_weights, other_weights
from neuronmoe_plugins.tuner.plans import LayerPlan
from neuronmoe_plugins.tuner.reference_format import PUBLISHED_ROUTER, ROUTER

ADAPTER_WEIGHTS = "adapter_model.safetensors"
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


def local_file(name: str, file: str) -> Path | None:
    """A file of a folder or of a repository on the hub; None if it has no such file."""
    if Path(name).is_dir():
        return Path(name, file) if Path(name, file).is_file() else None
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(name, file, **quiet)
    return None if found is None else Path(found)


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
            try:
                file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} cannot be read: {one_line(error)}") from error
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
    """The base model's configuration and files.

    Args:
        name: A folder, or a name on the hub.

    Raises:
        UserError: if it cannot be had, is quantised, has no MLPs that could have become mixtures, or lacks weights.
    """

    def __init__(self, name: str) -> None:
        require_model("--model", name)
        self.name = name
        try:
            self.config: PretrainedConfig = AutoConfig.from_pretrained(name)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(self.config)
            self.mlps: dict[int, FeedForward] = find_feed_forwards(model)
        except (OSError, ValueError) as error:
            raise UserError(f"--model {name}: {one_line(error)}") from error
        self.is_tied = bool(self.config.tie_word_embeddings)
        heads = {"lm_head.weight"} if self.is_tied else set()
        self.names = [key for key in model.state_dict() if key not in heads]
        self.files = TensorFiles(_weight_files(name))
        if lacking := [key for key in self.names if key not in self.files.names()]:
            raise UserError(f"--model {name} lacks {len(lacking)} weights of its model, among them {lacking[0]}")
        quantised = [key for key in self.names if self.files.dtype(key) is None]
        if quantised or getattr(self.config, "quantization_config", None):
            raise UserError(
                f"--model {name} is quantised, and an export copies its weights in floating point: name the model that "
                "it was quantised from"
            )

    @cached_property
    def mlp_layer(self) -> dict[str, int]:
        """Name of a tensor of an MLP -> its decoder layer."""
        prefixes = {f"{mlp.name}.": layer for layer, mlp in self.mlps.items()}
        return {name: layer for name in self.names for prefix, layer in prefixes.items() if name.startswith(prefix)}

    @property
    def dtype(self) -> torch.dtype:
        """That of its MLPs."""
        dtype = self.files.dtype(next(iter(self.mlp_layer)))
        assert dtype is not None, "a quantised base is refused"
        return dtype


def _weight_files(name: str) -> list[Path]:
    index = local_file(name, SAFE_WEIGHTS_INDEX_NAME)
    if index is not None:
        shards = set(read_json_object(index, "it lists the model's files")["weight_map"].values())
    else:
        shards = {SAFE_WEIGHTS_NAME}
    found = {shard: local_file(name, shard) for shard in sorted(shards)}
    if missing := [shard for shard, path in found.items() if path is None]:
        raise UserError(
            f"--model {name} has no {missing[0]}: weights are read as safetensors alone; load and save the model with "
            "transformers once"
        )
    return [path for path in found.values() if path is not None]


class Mixture:
    """An adapter on its base model.

    Args:
        adapter: Folder or hub name of the adapter.
        model: The base model, if it is not what the adapter names.

    Raises:
        UserError: if one cannot be had, they do not belong together, or the adapter has what no MLP's experts are.
    """

    def __init__(self, adapter: str, model: str | None) -> None:
        self.name, self.config = adapter, _adapter_config(adapter)
        named = model or self.config.base_model_name_or_path
        if not named:
            raise UserError(f"ADAPTER {adapter} names no base model; pass --model")
        if any(self._counts("group_nums")):
            raise UserError(
                f"ADAPTER {adapter} has language groups (group_nums), whose classifiers choose experts for a whole "
                "text, which no architecture of transformers does; train without group_nums, or run it as an adapter"
            )
        self.base = BaseModel(named)
        try:
            self.plans: dict[int, LayerPlan] = self.config.layer_plans(len(self.base.mlps))
        except ValueError as error:
            raise UserError(f"ADAPTER {adapter} does not fit --model {named}: {error}") from error
        path = local_file(adapter, ADAPTER_WEIGHTS)
        if path is None:
            raise UserError(f"ADAPTER {adapter} has no {ADAPTER_WEIGHTS}; adapters in adapter_model.bin are not read")
        self.files = TensorFiles([path])
        self._check_tensors()
        different = other_weights(self.config.made_on or {}, self.base.files.slice)
        if different:
            raise UserError(f"ADAPTER {adapter} is one of another model, {has_other_weights(named, different)}")

    def _counts(self, name: str) -> list[int]:
        value = getattr(self.config, name) or 0
        return value if isinstance(value, list) else [value]

    @property
    def counts(self) -> dict[int, int]:
        """Decoder layer -> experts, the base MLP included; 1 where it stays dense."""
        return {layer: self.plans[layer].num_experts if layer in self.plans else 1 for layer in self.base.mlps}

    def projections(self, layer: int) -> tuple[str, ...]:
        """Names of the linear layers of an MLP."""
        return self.base.mlps[layer].family.projections

    def expert(self, layer: int, expert: int, projection: str) -> Source:
        """The weight (out, in) of one of an expert's linear layers; expert 0 is the base MLP."""
        of_base = self.base.files.source(f"{self.base.mlps[layer].name}.{projection}.weight")
        if expert == 0:
            return of_base
        return Source(of_base.shape, partial(self._read_expert, layer, expert, projection, of_base))

    def _read_expert(self, layer: int, expert: int, projection: str, of_base: Source) -> torch.Tensor:
        plan, name = self.plans[layer], f"{self._prefix(layer)}.moe_{projection}"
        if plan.expert_rank is not None:
            down, up = (self.files.row(f"{name}{part}", expert - 1).float() for part in (DOWN, UP))
            return of_base.read().float() + self.config.scaling(plan.expert_rank) * (up @ down)
        if name in self.files.names():
            return self.files.row(name, expert - 1)
        return self.files.source(_published(self._prefix(layer), expert, projection)).read()

    def router(self, layer: int) -> Source:
        """(num_experts, hidden)."""
        return self.files.source(self._router_name(layer))

    def num_parameters(self) -> int:
        """Those that the adapter adds to the base."""
        return sum(torch.Size(self.files.shape(name)).numel() for name in self.files.names())

    def _prefix(self, layer: int) -> str:
        return f"{PEFT_PREFIX}{self.base.mlps[layer].name}"

    def _router_name(self, layer: int) -> str:
        ours, published = (f"{self._prefix(layer)}{suffix}" for suffix in (ROUTER, PUBLISHED_ROUTER))
        return published if published in self.files.names() else ours

    def _check_tensors(self) -> None:
        """The file has the mixtures' tensors in their shapes, and no others, which the export would lose."""
        expected: dict[str, tuple[int, ...]] = {}
        for layer, plan in self.plans.items():
            expected |= self._layer_tensors(layer, plan)
        names = self.files.names()
        if lost := sorted(names - expected.keys()):
            raise UserError(
                f"ADAPTER {self.name} has {lost[0]} beside its mixtures of MLPs, which an export would lose: only "
                "adapters of mixtures alone are exported"
            )
        wrong = [name for name, shape in expected.items() if name not in names or self.files.shape(name) != shape]
        if wrong:
            raise UserError(
                f"ADAPTER {self.name} does not fit its adapter_config.json and --model {self.base.name}: {wrong[0]} is "
                f"{self.files.shape(wrong[0]) if wrong[0] in names else 'missing'} instead of {expected[wrong[0]]}"
            )

    def _layer_tensors(self, layer: int, plan: LayerPlan) -> Mapping[str, tuple[int, ...]]:
        prefix, others, rank = self._prefix(layer), plan.num_experts - 1, plan.expert_rank
        router = self._router_name(layer)
        expected: dict[str, tuple[int, ...]] = {}
        for projection in self.projections(layer):
            out_features, in_features = self.expert(layer, 0, projection).shape
            expected[router] = expected.get(router, (plan.num_experts, in_features))
            name = f"{prefix}.moe_{projection}"
            if rank is not None:
                expected[f"{name}{DOWN}"] = (others, rank, in_features)
                expected[f"{name}{UP}"] = (others, out_features, rank)
            elif router.endswith(PUBLISHED_ROUTER):
                for expert in range(1, plan.num_experts):
                    expected[_published(prefix, expert, projection)] = (out_features, in_features)
            else:
                expected[name] = (others, out_features, in_features)
                if f"{self.base.mlps[layer].name}.{projection}.bias" in self.base.names:
                    expected[f"{name}_bias"] = (others, out_features)
        return expected


def _published(prefix: str, expert: int, projection: str) -> str:
    return f"{prefix}.moe_experts.{expert - 1}.{projection}.weight"


def _adapter_config(adapter: str) -> MoeConfig:
    path = local_file(adapter, ADAPTER[0])
    if path is None:
        raise UserError(f"ADAPTER {adapter} has no {ADAPTER[0]}")
    content = read_json_object(path, "name the folder of an adapter")
    if content.get("peft_type") != "MOE":
        raise UserError(f"{path} is not the configuration of a moe adapter: its peft_type is not MOE")
    try:
        config: MoeConfig = MoeConfig.from_peft_type(**content)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {one_line(error)}") from error
    return config
