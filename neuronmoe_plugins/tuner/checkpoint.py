"""Between an adapter's file and its parameters: one layout on disk, complete or an error.

In the file a layer has, for each weight of an expert, all its experts in `moe_{weight}` (num_experts - 1, ...), and
`moe_router.weight` (num_experts, hidden). In memory an extended adapter keeps its frozen rows apart, in `moe_old_*`.
What it saves beside the mixtures has the names of the base model's own tensors in the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, cast

import torch
from peft.config import PeftConfig
from peft.peft_model import PeftModel
from torch import nn

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.tuner.config import MoeConfig
from neuronmoe_plugins.tuner.experts.weights import copy_weights, new_experts, whole_weights
from neuronmoe_plugins.tuner.fingerprint import check_base
from neuronmoe_plugins.tuner.mixture import MixtureLayer
from neuronmoe_plugins.tuner.plans import LayerPlan
from neuronmoe_plugins.tuner.reference_format import is_published, tensors_from_published
from neuronmoe_plugins.tuner.saved_modules import replaced_weights, tensors_in_file

logger = logging.getLogger(__name__)

PEFT_PREFIX = "base_model.model."
OLD, NEW = ".moe_old_", ".moe_"
CLASSIFIER = ".moe_token_classify.weight"
# Vectorised kernels round otherwise on memory that is not aligned, as a mapped file's is.
ALIGNMENT = 64

BASE_REPLACED = (
    "the file of the moe adapter %r has other weights than the base model, which they replace: %s; if it was trained "
    "with modules_to_save, name them in the configuration"
)

StateDict = dict[str, torch.Tensor]


class AdapterFiles:
    """How a tuner's adapters lie on disk; peft before 0.21 does not ask, see `integrations/peft.py`."""

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: StateDict,
        unwanted_adapter_names: list[str],
    ) -> StateDict:
        """What to save of a model's state, whose keys still have the adapter's name."""
        own = without_other_adapters(state_dict, model, adapter_name)
        host = cast(Any, super())
        return to_file(host._get_adapter_state_dict(model, config, adapter_name, own, unwanted_adapter_names))

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: StateDict
    ) -> StateDict:
        """The model's parameters that a file holds; wrong shapes are refused, also if the caller would ignore them."""
        loaded = from_file(state_dict, model, adapter_name)
        parameters: StateDict = cast(Any, super())._remap_adapter_state_dict_for_load(
            model, config, adapter_name, loaded
        )
        return parameters


def from_file(state_dict: StateDict, model: nn.Module, adapter_name: str, check_shapes: bool = True) -> StateDict:
    """Turn what an adapter file holds into this model's parameters of the adapter.

    Args:
        state_dict: Tensors of the file, in this package's format or the published one.
        model: The model, with the adapter already in it.
        adapter_name: The adapter.
        check_shapes: Whether a wrong shape is an error.

    Returns:
        The tensors under the names of the model's parameters, without the adapter's name, in the parameters' dtype.

    Raises:
        UserError: naming the tensors that the file lacks, those that the adapter does not know, and wrong shapes.
    """
    if is_published(state_dict):
        logger.warning("the adapter %s is in the published NeuronMoE format: it is loaded as it is", adapter_name)
        state_dict = tensors_from_published(state_dict)
    layers = {_without_prefix(name): layer for name, layer in mixture_layers(model, adapter_name)}
    prefix = _prefix_of(model)
    given = {_without_prefix(key): tensor for key, tensor in state_dict.items()}
    saved, names = _saved_modules(given, model, adapter_name)
    config = cast(dict[str, MoeConfig], model.peft_config)[adapter_name]
    expected: StateDict = {}
    for name, layer in layers.items():
        expected |= {f"{name}.{key}": value for key, value in parameters_in_file(layer, adapter_name).items()}
    given = _with_new_classifiers(given, expected, config)
    given = _with_new_experts(given, expected, layers, adapter_name)
    _check_complete(given, expected | saved, model, adapter_name, check_shapes)
    if config.made_on:
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        check_base(base, config.made_on, adapter_name, config.base_model_name_or_path)
    # What an extension keeps stays as it was saved, also where that is finer than the base.
    keeps_dtype = not config.inference_mode and config.adapter_dtype is None
    loaded: StateDict = {}
    for key, tensor in given.items():
        if key in saved:
            loaded[f"{prefix}{names[key]}"] = _aligned(tensor.to(saved[key].dtype))
            continue
        if key not in expected:
            loaded[f"{prefix}{key}"] = tensor
            continue
        layer_name, _, weight_name = key.rpartition(NEW)
        for part, rows in _in_memory(layers[layer_name], adapter_name, weight_name, tensor, keeps_dtype):
            loaded[f"{prefix}{layer_name}{part}{weight_name}"] = rows
    return loaded


def _saved_modules(given: StateDict, model: nn.Module, adapter_name: str) -> tuple[StateDict, dict[str, str]]:
    """What the adapter saves beside its mixtures, by the name in its file: the model's tensors, and the names to load.

    Later versions of PEFT have put the model's names into `given` by now; it gets the file's back.
    """
    saved, names = {}, {}
    for key, (own, tensor) in tensors_in_file(model, adapter_name).items():
        in_file, in_model = _without_prefix(key), _without_prefix(own)
        saved[in_file], names[in_file] = tensor, in_model if in_model in given else in_file
        if in_model in given:
            given[in_file] = given.pop(in_model)
    return saved, names


def to_file(state_dict: StateDict) -> StateDict:
    """Put the rows that an extended adapter keeps apart back in front of the others; the rest stays as it is."""
    joined = {key: tensor for key, tensor in state_dict.items() if OLD not in key}
    for key, tensor in state_dict.items():
        if OLD in key:
            name = key.replace(OLD, NEW)
            joined[name] = torch.cat([tensor, joined[name]]) if name in joined else tensor
    return dict(sorted(joined.items()))


def without_other_adapters(state_dict: StateDict, model: nn.Module, adapter_name: str) -> StateDict:
    """Drop the parameters of all mixtures but the adapter's from a model's state."""
    others = {
        f"{name}.{attribute}.{other}"
        for name, layer in model.named_modules()
        if isinstance(layer, MixtureLayer)
        for attribute in layer.adapter_layer_names
        for other in getattr(layer, attribute)
        if other != adapter_name
    }
    return {key: tensor for key, tensor in state_dict.items() if key.removesuffix(".weight") not in others}


def mixture_layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, MixtureLayer]]:
    """Name and module of the layers in which the adapter has a mixture."""
    for name, module in model.named_modules():
        if isinstance(module, MixtureLayer) and adapter_name in module.plans:
            yield name, module


def parameters_in_file(layer: MixtureLayer, adapter_name: str) -> StateDict:
    """The layer's part of the adapter's file: name -> a tensor on the meta device of its shape and dtype."""
    plan = layer.plans[adapter_name]
    present: StateDict = {}
    for name in layer.adapter_layer_names:
        values = getattr(layer, name)
        if adapter_name not in values:
            continue
        value = values[adapter_name]
        tensor, suffix = (value, "") if isinstance(value, torch.Tensor) else (value.weight, ".weight")
        rows = plan.num_groups if name == "moe_token_classify" else plan.num_experts - (suffix == "")
        name = name.replace("moe_old_", "moe_")
        present[f"{name}{suffix}"] = torch.empty((rows, *tensor.shape[1:]), dtype=tensor.dtype, device="meta")
    return present


def _with_new_classifiers(given: StateDict, expected: StateDict, config: MoeConfig) -> StateDict:
    """Add classifiers that are about to be trained to an adapter that has none."""
    new = {key: value for key, value in expected.items() if key.endswith(CLASSIFIER)}
    if config.inference_mode or not config.classify_loss_coef or not new.keys().isdisjoint(given):
        return given
    return given | {key: _random_rows(value) for key, value in new.items()}


def _with_new_experts(
    given: StateDict, expected: StateDict, layers: dict[str, MixtureLayer], adapter_name: str
) -> StateDict:
    """Add new experts and their router rows, if this is the adapter that an extension starts from."""
    plans = {name: layer.plans[adapter_name] for name, layer in layers.items()}
    old_shapes = {}
    for key in expected:
        layer_name, _, weight_name = key.rpartition(NEW)
        plan = plans[layer_name]
        if plan.num_new_experts and not key.endswith(CLASSIFIER):
            old_shapes[key] = (_num_kept(plan, weight_name), *expected[key].shape[1:])
    extends = any(plan.num_kept_experts for plan in plans.values())
    if not extends or any(given[key].shape != shape if key in given else shape[0] for key, shape in old_shapes.items()):
        return given
    new = {key: _initial(key, expected[key], shape[0], layers, adapter_name) for key, shape in old_shapes.items()}
    return given | {key: torch.cat([given[key], rows]) if key in given else rows for key, rows in new.items()}


def _initial(
    key: str, expected: torch.Tensor, num_old: int, layers: dict[str, MixtureLayer], adapter_name: str
) -> torch.Tensor:
    """The rows of `key` beyond the first `num_old`: copies of the base MLP's weight, random ones for the router."""
    layer_name, _, weight_name = key.rpartition(NEW)
    if weight_name == "router.weight":
        return _random_rows(expected)[num_old:]
    layer = layers[layer_name]
    base_layer = layer.get_base_layer()
    with whole_weights(base_layer):
        weights = copy_weights(base_layer, layer.family)
        rank = layer.plans[adapter_name].expert_rank
        new = new_experts(weights, layer.family, len(expected) - num_old, rank)[weight_name]
        return new.to("cpu", expected.dtype, copy=True)


def _random_rows(like: torch.Tensor) -> torch.Tensor:
    return nn.init.xavier_normal_(torch.empty(like.shape, dtype=like.dtype))


def _check_complete(
    given: StateDict, expected: StateDict, model: nn.Module, adapter_name: str, check_shapes: bool
) -> None:
    """Every tensor of the adapter is there in its shape, and nothing else but weights that the model has."""
    own = {_without_prefix(key): tensor for key, tensor in model.state_dict().items()}
    problems = {
        "lacks": sorted(expected.keys() - given.keys()),
        "has, unknown to it,": sorted(given.keys() - expected.keys() - own.keys()),
        "has, in a wrong shape,": [
            f"{key} {tuple(given[key].shape)} instead of {tuple(tensor.shape)}"
            for key, tensor in expected.items()
            if check_shapes and key in given and given[key].shape != tensor.shape
        ],
    }
    found = [f"{what} {_some(names)}" for what, names in problems.items() if names]
    if found:
        raise UserError(
            f"the file of the moe adapter {adapter_name!r} does not fit the model and the adapter's configuration: it "
            f"{'; it '.join(found)}. Check num_experts, expert_rank and "
            "layers_to_transform, and that this is the right base model"
        )
    replaced = replaced_weights({key: given[key] for key in given.keys() - expected.keys()}, own)
    if replaced:
        logger.warning(BASE_REPLACED, adapter_name, _some(replaced))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def _in_memory(
    layer: MixtureLayer, adapter_name: str, weight_name: str, tensor: torch.Tensor, keeps_dtype: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """Split a tensor of the file into the kept rows and the others, each in its parameter's dtype."""
    kept = _num_kept(layer.plans[adapter_name], weight_name)
    for part, rows in ((OLD, tensor[:kept]), (NEW, tensor[kept:])):
        if not len(rows):
            continue
        value = getattr(layer, f"{part[1:]}{weight_name.removesuffix('.weight')}")[adapter_name]
        parameter = value if isinstance(value, nn.Parameter) else value.weight
        if part == OLD and keeps_dtype:
            parameter.data = parameter.data.to(rows.dtype)
        yield part, _aligned(rows.to(parameter.dtype))


def _num_kept(plan: LayerPlan, weight_name: str) -> int:
    """How many rows of a tensor of the file an extension keeps."""
    if f"{NEW}{weight_name}" == CLASSIFIER:
        return 0
    return plan.num_kept_rows if weight_name == "router.weight" else plan.num_kept_experts


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in memory of its own, where it starts as every parameter does."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 and tensor.is_contiguous() else tensor.clone()


def in_model_names(state_dict: StateDict, model: nn.Module) -> StateDict:
    """A file's tensors with PEFT's prefix of the names, or without it, as the model has it."""
    prefix = _prefix_of(model)
    return {f"{prefix}{_without_prefix(key)}": tensor for key, tensor in state_dict.items()}


def _prefix_of(model: nn.Module) -> str:
    return PEFT_PREFIX if any(key.startswith(PEFT_PREFIX) for key in model.state_dict()) else ""


def _without_prefix(key: str) -> str:
    return key.removeprefix(PEFT_PREFIX)
