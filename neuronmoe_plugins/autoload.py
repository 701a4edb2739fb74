"""Post-import hooks that teach the hosts about `moe`; imports nothing heavy and never raises.

A host that cannot be taught stays as it is, without a word to those who do not use `moe`; who does is refused.

The hooks sit on leaf modules: a top-level package such as `peft` may be in the middle of its own import when its hook
fires, and LLaMA-Factory's workers never import its command line.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

import wrapt

from neuronmoe_plugins.errors import UserError, one_line

logger = logging.getLogger(__name__)

Hook = Callable[[ModuleType], None]

# Module of a host -> the function of this package that is called with that module once it is imported.
HOOKS: dict[str, str] = {
    "peft.peft_model": "neuronmoe_plugins.integrations.peft:register",
    "peft.utils.save_and_load": "neuronmoe_plugins.integrations.peft:extend_save_and_load",
    "transformers.models.auto.configuration_auto": "neuronmoe_plugins.integrations.transformers:offer_configuration",
    "transformers.models.auto.modeling_auto": "neuronmoe_plugins.integrations.transformers:offer_architecture",
    "peft.tuners.trainable_tokens.layer": "neuronmoe_plugins.integrations.peft:collect_rows_anywhere",
    "transformers.integrations.peft": "neuronmoe_plugins.integrations.transformers:extend_adapter_loading",
    "transformers.trainer": "neuronmoe_plugins.integrations.transformers:extend_trainer",
    "torch.distributed.run": "neuronmoe_plugins.integrations.commands:extend_torchrun",
    "llamafactory.cli": "neuronmoe_plugins.integrations.run_files:extend_command",
    "llamafactory.launcher": "neuronmoe_plugins.integrations.commands:extend_launcher",
    "liger_kernel.transformers.swiglu": "neuronmoe_plugins.integrations.liger:name_activations",
    "liger_kernel.transformers.geglu": "neuronmoe_plugins.integrations.liger:name_activations",
    "liger_kernel.transformers.monkey_patch": "neuronmoe_plugins.integrations.liger:extend_patches",
    "lm_eval._cli.harness": "neuronmoe_plugins.integrations.lm_eval:extend_command",
    "lm_eval.models.huggingface": "neuronmoe_plugins.integrations.lm_eval:check_bases",
    "lm_eval.api.task": "neuronmoe_plugins.integrations.lm_eval:name_tasks",
    "lm_eval.tasks": "neuronmoe_plugins.integrations.lm_eval:offer_tasks",
    "vllm.engine.arg_utils": "neuronmoe_plugins.integrations.vllm:check_models",
    "llamafactory.extras.constants": "neuronmoe_plugins.integrations.llamaboard:offer_moe",
    "llamafactory.hparams.parser": "neuronmoe_plugins.integrations.llamafactory.hooks:extend",
    "llamafactory.data.parser": "neuronmoe_plugins.integrations.llamafactory.hooks:extend",
    "llamafactory.data.loader": "neuronmoe_plugins.integrations.llamafactory.hooks:extend",
    "llamafactory.model.loader": "neuronmoe_plugins.integrations.llamafactory.hooks:extend",
    "llamafactory.train.pt.trainer": "neuronmoe_plugins.integrations.llamafactory.hooks:extend",
    "llamafactory.train.sft.trainer": "neuronmoe_plugins.integrations.llamafactory.hooks:extend",
    "llamafactory.train.tuner": "neuronmoe_plugins.integrations.llamafactory.hooks:extend",
    "llamafactory.train.sft.workflow": "neuronmoe_plugins.integrations.llamafactory.hooks:extend",
    "llamafactory.v1.config.arg_parser": "neuronmoe_plugins.integrations.llamafactory_v1:extend_arguments",
    "llamafactory.v1.plugins.model_plugins.peft": "neuronmoe_plugins.integrations.llamafactory_v1:register",
    "llamafactory.v1.core.base_trainer": "neuronmoe_plugins.integrations.llamafactory_v1:extend_base_trainer",
    "llamafactory.v1.trainers.sft_trainer": "neuronmoe_plugins.integrations.llamafactory_v1:extend_trainer",
    "llamafactory.v1.utils.callbacks.trainer_callback": "neuronmoe_plugins.integrations.llamafactory_v1:extend_logs",
}

# Outcome of every hook that has fired: None, or what went wrong.
outcomes: dict[str, Exception | None] = {}

_registered = False

# The hooks of modules whose import has begun: what imports torch, and so this package, may be one itself.
_waiting: dict[str, Hook] = {}


def register_hooks() -> None:
    """Register the hooks once per process; modules that are already imported are hooked at once.

    The import of one may be what imports torch, and so this package: it is hooked as soon as it is complete.
    """
    global _registered
    if _registered:
        return
    _registered = True
    for module_name, target in HOOKS.items():
        run_after_import(_guarded(module_name, target), module_name)


def _guarded(module_name: str, target: str) -> Hook:
    """Wrap a hook so that its failure is recorded, `moe` refused there, and the host's import goes on."""

    def hook(module: ModuleType) -> None:
        hook_module, function = target.split(":")
        try:
            getattr(importlib.import_module(hook_module), function)(module)
            outcomes[module_name] = None
        except Exception as error:  # the host must keep working without `moe`
            outcomes[module_name] = error
            logger.debug("cannot extend %s", module_name, exc_info=error)
            _refuse_moe(module, error)

    return hook


def _refuse_moe(module: ModuleType, error: Exception) -> None:
    try:
        importlib.import_module("neuronmoe_plugins.integrations.refusals").refuse(module, error)
    except Exception as another:  # as above
        logger.debug("cannot refuse moe in %s", module.__name__, exc_info=another)


def require(*module_names: str) -> None:
    """Refuse `moe` unless these modules of hosts could be extended; imports those that are not imported yet.

    Raises:
        UserError: naming the host, its version, the first module that could not be extended, and why.
    """
    for name in module_names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise refusal(name, error) from error
        failure = outcomes.get(name)
        if failure is not None:
            raise refusal(name, failure) from failure


def refusal(module_name: str, error: Exception) -> UserError:
    """What to raise where `moe` is asked for, and a hook that it needs has failed.

    Args:
        module_name: The host's module that could not be extended.
        error: Why.
    """
    package = module_name.partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", None)
    try:
        version = version or importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = "of an unknown version"
    return UserError(
        f"moe cannot run with {package} {version}: neuronmoe-plugins cannot extend {module_name} "
        f"({type(error).__name__}: {one_line(error)}); run `neuronmoe doctor`"
    )


class _WatchedSpec(ModuleSpec):
    """The spec of a module that is being imported; to set `_initializing` to False is Python's last act in that."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "_initializing" and not value:
            super().__setattr__("__class__", ModuleSpec)
            run_after_import(_waiting.pop(self.name), self.name)


def run_after_import(hook: Hook, module_name: str) -> None:
    """Call `hook` with a module once it is imported: now, at the end of an import that has begun, or at a later one."""
    spec = getattr(sys.modules.get(module_name), "__spec__", None)
    if type(spec) is ModuleSpec and getattr(spec, "_initializing", False):
        _waiting[module_name] = hook
        spec.__class__ = _WatchedSpec  # type: ignore[assignment]
    else:
        wrapt.register_post_import_hook(hook, module_name)
