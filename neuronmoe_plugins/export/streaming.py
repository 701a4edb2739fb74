"""Models that have a layer's weights while it runs and at no other time: transformers' classes, fed from files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.export.sources import TensorFiles
from neuronmoe_plugins.host_versions import loaded_tensor, weights_dtype

Read = Callable[[str], torch.Tensor | None]


def empty_model(config: PretrainedConfig) -> Any:
    """A causal language model in evaluation mode, whose parameters are on the meta device."""
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, **weights_dtype(torch.float32)).eval()


def reader(model: Any, files: TensorFiles, place: str) -> Read:
    """What gives a model's tensor by its name.

    Args:
        model: One of transformers.
        files: Its checkpoint.
        place: What it is, for errors.
    """
    heads = {}
    if model.config.get_text_config().tie_word_embeddings:
        own = {id(module): name for name, module in model.named_modules()}
        head, embedding = (own[id(each)] for each in (model.get_output_embeddings(), model.get_input_embeddings()))
        heads = {f"{head}.weight": f"{embedding}.weight"}

    def read(name: str) -> torch.Tensor:
        tensor = loaded_tensor(heads.get(name, name), files.names(), lambda name: files.source(name).read())
        if tensor is None:
            raise UserError(f"{place} lacks {name}, which the installed transformers has in {type(model).__name__}")
        return tensor

    return read


def stream(model: nn.Module, layers: Iterable[str], read: Read, device: str) -> None:
    """Let the modules of a model get their parameters before they run, in float32, and lose them afterwards.

    Args:
        model: What is run.
        layers: Names of the modules that get theirs at once, the decoder layers.
        read: From a parameter's name to it; None for one that the model has itself.
        device: Where they run.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_meta:  # as what PEFT keeps of rows before they are trained, which nothing reads here
                setattr(module, name, buffer.to(device))
    for prefix, unit in _units(model, set(layers)):
        places = [(module, name, f"{prefix}.{path}") for path, module, name in _parameters(unit)]
        given: dict[str, nn.Parameter] = {}
        unit.register_forward_pre_hook(partial(_fill, places, given, read, device))
        unit.register_forward_hook(partial(_empty, places, given), always_call=True)


def _units(model: nn.Module, layers: set[str]) -> Iterator[tuple[str, nn.Module]]:
    """The layers, and all other modules with parameters of their own."""
    for name, module in model.named_modules():
        within = any(name.startswith(f"{layer}.") for layer in layers)
        if name in layers or (module._parameters and not within):
            yield name, module


Place = tuple[nn.Module, str, str]


def _parameters(unit: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for path, module in unit.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{path}.{name}" if path else name, module, name


def _fill(places: list[Place], given: dict[str, Any], read: Read, device: str, *_: Any) -> None:
    for module, name, path in places:
        given[path] = module._parameters[name]
        tensor = read(path)
        own = given[path].detach() if tensor is None else tensor
        module._parameters[name] = nn.Parameter(own.to(device, torch.float32), requires_grad=False)


def _empty(places: list[Place], given: dict[str, Any], *_: Any) -> None:
    for module, name, path in places:
        module._parameters[name] = given.pop(path)
