"""vLLM: the architecture `neuronmoe` in its registry, and what it is not let serve since it would do it wrongly.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`), after torch, and so the
configuration of the architecture, was imported.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from neuronmoe_plugins.architecture.config import ARCHITECTURE
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.commands import end_in_one_line
from neuronmoe_plugins.integrations.stand_ins import Call, wrap
from neuronmoe_plugins.models import ADAPTER, MODEL
from neuronmoe_plugins.reading import read_json_object

ERNIE = "Ernie4_5_MoeForCausalLM"


def register() -> None:
    """Name vLLM the class of `neuronmoe`, which it imports where such a checkpoint is served; may be called again."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, f"neuronmoe_plugins.integrations.vllm_model:{ARCHITECTURE}")


def check_models(module: ModuleType) -> None:
    """Post-import hook of `vllm.engine.arg_utils`, where every engine's arguments become a configuration."""
    wrap(module, {"EngineArgs.create_engine_config": _create_engine_config})
    end_in_one_line()


def _create_engine_config(call: Call) -> Any:
    """Refuse what is no model, before it is looked for, and what this engine would compute wrongly."""
    refuse_adapter(str(call.instance.model))
    require_plugin(str(call.instance.model))
    config = call.host()
    refuse_wrong_class(config.model_config, config.device_config.device_type)
    return config


def refuse_adapter(name: str) -> None:
    """Refuse the folder of an adapter of mixtures.

    Args:
        name: What vLLM is told to serve.

    Raises:
        UserError: if it is one.
    """
    file = Path(name) / ADAPTER[0]
    if not file.is_file() or (Path(name) / MODEL[0]).is_file():
        return
    if read_json_object(file, "it describes an adapter").get("peft_type") == "MOE":
        raise UserError(
            f"{name} is an adapter of mixtures, and vLLM serves whole models: run `neuronmoe export {name} "
            "--output FOLDER`, and serve that folder"
        )


def require_plugin(name: str) -> None:
    """Say why `register` was not called, where vLLM would list the hundreds of classes that it knows.

    It finds it by the metadata of the package, which are old where only the package's files were brought up to date.

    Args:
        name: What vLLM is told to serve, after it has loaded its plugins.

    Raises:
        UserError: for a checkpoint of `neuronmoe` that it has no class of.
    """
    file = Path(name) / MODEL[0]
    if not file.is_file() or read_json_object(file, "it describes a model").get("architectures") != [ARCHITECTURE]:
        return
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        way = "install neuronmoe-plugins again where vLLM is, and start it in no folder with an older one's .egg-info"
        if "VLLM_PLUGINS" in os.environ:
            way = "name neuronmoe among VLLM_PLUGINS"
        raise UserError(f"{name}: vLLM has not loaded the plugin that has its class; {way}")


def refuse_wrong_class(model: Any, device: str) -> None:
    """Refuse layers of unequal numbers of experts where the class that vLLM takes has no place for them (0.32).

    Args:
        model: vLLM's configuration of a model.
        device: The kind of device it runs on.

    Raises:
        UserError: for `neuronmoe` in transformers' backend, which gives all layers one count, and for Ernie 4.5 MoE
            without shared experts, as `neuronmoe export` writes it, on a CPU, where the bias on the choice is ignored.
    """
    if ARCHITECTURE in (model.hf_config.architectures or ()) and model.architecture != ARCHITECTURE:
        raise UserError(
            f"{model.model}: vLLM's transformers backend gives all layers of a mixture one number of experts; leave "
            "--model-impl (model_impl) away, so that it takes the class of neuronmoe-plugins"
        )
    is_uneven = getattr(model.hf_config, "moe_num_shared_experts", None) == 0
    if device == "cpu" and is_uneven and model.architecture == ERNIE:
        raise UserError(
            f"{model.model}: vLLM on a CPU ignores the bias by which layers of ernie4_5_moe have unequal numbers of "
            "experts, and would write other text; add --model-impl transformers (model_impl=transformers)"
        )
