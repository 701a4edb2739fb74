"""What some of the supported versions of the hosts lack, each under the name of what is missing.

An entry goes when no supported version lacks it any more; nothing else here or elsewhere asks for a version.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn


def is_fsdp_enabled() -> bool:
    """transformers 4.51 has no `integrations.is_fsdp_enabled`: it is in `modeling_utils` there."""
    from transformers import integrations, modeling_utils

    home = integrations if hasattr(integrations, "is_fsdp_enabled") else modeling_utils
    return bool(home.is_fsdp_enabled())


def fsdp_settings(training_args: Any) -> dict[str, Any] | None:
    """transformers 4 has no `fsdp_plugin_args`: it puts the settings into the environment."""
    settings: dict[str, Any] | None = getattr(training_args, "fsdp_plugin_args", None)
    return settings


def may_lack(function: str, finetuning_arguments: type) -> bool:
    """LLaMA-Factory 0.9.4 has no ASFT, the one loss of `sft` with a reference model: no `create_ref_model` there."""
    return function == "create_ref_model" and not hasattr(finetuning_arguments, "use_asft_loss")


def named_by_task(member: Any, is_group: Callable[[str], bool]) -> Any:
    """lm-eval before 0.4.12 takes a group within a group, with options of its own, by the key `task` alone.

    Args:
        member: What a group lists: a name, or a dictionary with options, which since has the key `group` for a group.
        is_group: Whether there is a group of that name.
    """
    if isinstance(member, dict) and "task" not in member and is_group(member.get("group", "")):
        return {"task": member["group"]} | {key: value for key, value in member.items() if key != "group"}
    return member


def asks_tuners(save_and_load: ModuleType) -> bool:
    """peft before 0.21 decides by itself what of an adapter is saved, and what a file's keys are in the model."""
    asked = {
        "get_peft_model_state_dict": "_get_adapter_state_dict",
        "set_peft_model_state_dict": "_remap_adapter_state_dict_for_load",
    }
    return all(method in getattr(save_and_load, name).__code__.co_names for name, method in asked.items())


def whole_tuner(base: type[nn.Module]) -> Any:
    """peft 0.17 leaves to each method what `BaseTuner` does since: the base class with that in front of it."""
    return base if hasattr(base, "delete_adapter") else type(base.__name__, (_AdapterLifecycle, base), {})


class _AdapterLifecycle:
    """What `peft.tuners.tuners_utils.BaseTuner` of peft 0.17 lacks, as far as `moe` has it."""

    model: nn.Module
    peft_config: dict[str, Any]
    active_adapter: str | list[str]
    prefix: str
    tuner_layer_cls: type[nn.Module]
    _check_merge_allowed: Callable[[], None]
    _delete_auxiliary_adapter: Callable[..., None]

    def __getattr__(self, name: str) -> Any:
        try:
            return cast(Any, super()).__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def _layers(self) -> list[Any]:
        return [module for module in self.model.modules() if isinstance(module, self.tuner_layer_cls)]

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if self.prefix not in name:
                parameter.requires_grad = False

    def _enable(self, enabled: bool) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
                module.enable_adapters(enabled)

    def enable_adapter_layers(self) -> None:
        self._enable(True)

    def disable_adapter_layers(self) -> None:
        self._enable(False)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        for layer in self._layers():
            layer.set_adapter(adapter_name, inference_mode=inference_mode)
        self.active_adapter = adapter_name

    def delete_adapter(self, adapter_name: str) -> None:
        if adapter_name not in self.peft_config:
            raise ValueError(f"Adapter {adapter_name} does not exist")
        del self.peft_config[adapter_name]
        layers = self._layers()
        for layer in layers:
            layer.delete_adapter(adapter_name)
        self.active_adapter = layers[0].active_adapters[:] if layers else []
        self._delete_auxiliary_adapter(adapter_name, new_active_adapters=self.active_adapter)

    def merge_and_unload(self, *_args: Any, **_kwargs: Any) -> None:
        self._check_merge_allowed()

    def unload(self) -> nn.Module:
        for name, module in list(self.model.named_modules()):
            if isinstance(module, self.tuner_layer_cls):
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, cast(Any, module).get_base_layer())
        return self.model


def set_layer_adapter(
    set_adapter: Callable[..., None], layer: Any, adapter_names: str | list[str], inference_mode: bool
) -> None:
    """`BaseTunerLayer.set_adapter` of peft 0.17 takes no `inference_mode`, and marks adapters as trainable always.

    Args:
        set_adapter: The host's method, bound to the layer.
        layer: The layer.
        adapter_names: What to activate.
        inference_mode: Whether what is activated stays frozen.
    """
    if "inference_mode" in inspect.signature(set_adapter).parameters:
        set_adapter(adapter_names, inference_mode=inference_mode)
        return
    set_adapter(adapter_names)
    if inference_mode:
        for name in layer.adapter_layer_names:
            getattr(layer, name).requires_grad_(False)


def weights_dtype(dtype: Any) -> dict[str, Any]:
    """transformers before 4.56 has no `dtype`: what `from_pretrained` takes for the dtype of the weights."""
    from transformers import PretrainedConfig

    return {"dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype": dtype}


def trains_rows_of_heads() -> bool:
    """peft 0.17 trains rows of an embedding alone, and fails at a head with rows of its own."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    return "in_features" in TrainableTokensLayer.update_layer.__code__.co_names


def rotary_settings(config: Any) -> tuple[float, dict[str, Any] | None]:
    """transformers 4 has no `rope_parameters`: the base of rotary positions, and how they are scaled, lie apart."""
    settings: dict[str, Any] | None = getattr(config, "rope_parameters", None)
    if settings is None:
        return config.rope_theta, getattr(config, "rope_scaling", None)
    scaling = {key: value for key, value in settings.items() if key != "rope_theta"}
    return settings["rope_theta"], None if scaling.get("rope_type") == "default" else scaling


def loaded_tensor(name: str, names: Container[str], read: Callable[[str], torch.Tensor]) -> torch.Tensor | None:
    """transformers 5 stacks a mixture's experts when it loads them, and has Ernie's bias below the router.

    Args:
        name: A parameter of a model.
        names: The tensors of its checkpoint, in which every expert has weights of its own.
        read: Gives one of them.

    Returns:
        What the parameter is loaded with; None if the checkpoint does not have it.
    """
    if name in names:
        return read(name)
    if (older := name.replace(".gate.moe_statics.", ".moe_statics.")) in names:
        return read(older)
    prefix, _, stack = name.rpartition(".")
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(stack, ())
    experts: list[torch.Tensor] = []
    while parts and f"{prefix}.{len(experts)}.{parts[0]}.weight" in names:
        experts.append(torch.cat([read(f"{prefix}.{len(experts)}.{part}.weight") for part in parts]))
    return torch.stack(experts) if experts else None
