"""transformers: its Trainer has the mixture's losses, its models load `moe` adapters, and it knows `neuronmoe`."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import wrapt
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from neuronmoe_plugins.integrations.stand_ins import Call, wrap

# What of a model's loading options concerns the place of the adapter.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def extend_trainer(module: ModuleType) -> None:
    """Post-import hook of `transformers.trainer`."""
    stand_ins = {
        "Trainer.get_batch_samples": _get_batch_samples,
        "Trainer.__init__": _init,
        "Trainer.save_model": _save_model,
        "Trainer._save(state_dict)": _save,
    }
    wrap(module, stand_ins)


def extend_adapter_loading(module: ModuleType) -> None:
    """Post-import hook of `transformers.integrations.peft`."""
    wrap(module, {"PeftAdapterMixin.load_adapter(peft_model_id, adapter_name)": _load_adapter})


def offer_configuration(module: ModuleType) -> None:
    """Post-import hook of `transformers.models.auto.configuration_auto`, which finds the class of a config.json."""
    from neuronmoe_plugins.architecture.config import ARCHITECTURE, MODEL_TYPE, NeuronMoeConfig, NeuronMoeForCausalLM

    module.AutoConfig.register(MODEL_TYPE, NeuronMoeConfig, exist_ok=True)
    # `transformers serve` looks for the class in the package. On the class of that module, which is transformers' own:
    # its `processing_utils` puts another module in the place of `transformers`, and others hold either.
    package = sys.modules["transformers"]
    setattr(package if type(package) is ModuleType else type(package), ARCHITECTURE, NeuronMoeForCausalLM)


def offer_architecture(module: ModuleType) -> None:
    """Post-import hook of `transformers.models.auto.modeling_auto`, which finds the class of a model."""
    from neuronmoe_plugins.architecture import config

    module.AutoModelForCausalLM.register(config.NeuronMoeConfig, config.NeuronMoeForCausalLM, exist_ok=True)
    # lm-eval and lists of models look the type up here.
    module.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.MODEL_TYPE] = config.ARCHITECTURE


def _get_batch_samples(call: Call) -> Any:
    """Stand in for `Trainer.get_batch_samples`, which returns the micro-batches of one step and their item count.

    A micro-batch cannot know how many items of each of the mixture's losses the others hold, which the mean over all of
    them needs: every one is told.
    """
    trainer, (batches, num_items) = call.instance, call.host()
    objective = find_objective(trainer.model)
    if num_items is None or not batches or objective is None:
        return batches, num_items
    # Not at the top: the tuner imports peft, which may be what is importing transformers' trainer just now.
    from neuronmoe_plugins.tuner.inputs import count_items

    counts = [count_items(batch) for batch in batches]
    objective.over_processes = trainer.args.average_tokens_across_devices and trainer.args.world_size > 1
    for name in counts[0]:
        total = torch.stack([count[name] for count in counts]).sum().to(trainer.args.device)
        if objective.over_processes:
            total = trainer.accelerator.gather(total).sum()
        for batch in batches:
            batch[name] = total
    return batches, num_items


def _init(call: Call) -> None:
    """Stand in for the constructor: whatever a subclass's `compute_loss` does, the mixture's losses are part of it."""
    call.host()
    trainer = call.instance
    if find_objective(trainer.model) is None:
        return
    trainer.compute_loss = wrapt.FunctionWrapper(trainer.compute_loss, _compute_loss)
    if is_deepspeed_zero3_enabled():
        from neuronmoe_plugins.integrations.deepspeed import mark_leaf_modules, name_token_rows

        mark_leaf_modules(trainer.model)
        name_token_rows(trainer.model)


def _save_model(call: Call) -> None:
    """Stand in for `Trainer.save_model`, which under ZeRO-3 collects the trained parameters of a PEFT model alone."""
    trainer = call.instance
    if not is_deepspeed_zero3_enabled() or find_objective(trainer.model) is None:
        call.host()
        return
    from neuronmoe_plugins.integrations.deepspeed import gather_frozen

    trainer.moe_frozen = gather_frozen(trainer.model)
    try:
        call.host()
    finally:
        del trainer.moe_frozen


def _save(call: Call) -> None:
    """Stand in for `Trainer._save(output_dir, state_dict)`, which only the first process calls."""
    frozen, state_dict = vars(call.instance).get("moe_frozen"), call.arguments.get("state_dict")
    call.host(**({"state_dict": {**state_dict, **frozen}} if frozen and state_dict else {}))


def _compute_loss(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand in for `compute_loss(model, inputs, return_outputs, num_items_in_batch)`.

    Some trainers compute the LM loss from the logits and leave the model's own, with all that was added to it, unused;
    a loss function of the user's and label smoothing even take the labels away from the model.
    """
    trainer = getattr(wrapped, "__self__", instance)
    objective = find_objective(trainer.model)
    if objective is not None and trainer.model.training:
        _keep_labels(trainer, args[1] if len(args) > 1 else kwargs["inputs"])
    result = wrapped(*args, **kwargs)
    over_processes = trainer.args.average_tokens_across_devices and kwargs.get("num_items_in_batch") is not None
    scale = trainer.accelerator.num_processes if over_processes else 1
    if isinstance(result, tuple):
        return with_mixture_losses(result[0], objective, scale), *result[1:]
    return with_mixture_losses(result, objective, scale)


def with_mixture_losses(loss: torch.Tensor, objective: Any, scale: float = 1) -> torch.Tensor:
    """A trainer's loss with what the last training forward added to the model's own, unless it holds that already.

    Args:
        loss: Scalar that the trainer is about to differentiate.
        objective: The model's :class:`~neuronmoe_plugins.tuner.objective.Objective`, or None.
        scale: What the trainer multiplies its loss by, such as the number of processes.
    """
    added = None if objective is None else objective.added
    if added is None or not added.requires_grad:
        return loss
    objective.added = None
    return loss if _depends_on(loss, added) else loss + (added * scale).to(loss.device)


def _keep_labels(trainer: Any, inputs: dict[str, Any]) -> None:
    """Give the labels to the mixture's losses where the trainer is about to take them away from the model."""
    takes_them = trainer.label_smoother is not None or trainer.compute_loss_func is not None
    if takes_them and inputs.get("labels") is not None:
        from neuronmoe_plugins.tuner.inputs import MIXTURE_LABELS

        inputs[MIXTURE_LABELS] = inputs["labels"]


def _depends_on(loss: torch.Tensor, part: torch.Tensor) -> bool:
    """Whether `part` went into `loss`, by the graph alone: to run a part of it would set off DeepSpeed's hooks."""
    seen, nodes = set(), deque([loss.grad_fn])
    while nodes:
        node = nodes.popleft()
        if node is part.grad_fn:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            nodes.extend(following for following, _ in node.next_functions)
    return False


def find_objective(model: torch.nn.Module) -> Any:
    """The mixture's objective in a model, if there is one."""
    return next((o for m in model.modules() if (o := vars(m).get("moe_objective"))), None)


def _load_adapter(call: Call) -> Any:
    """Stand in for a model's `load_adapter(peft_model_id, adapter_name, peft_config, adapter_state_dict, ...)`.

    transformers warns of missing tensors and knows nothing of the published format: a `moe` adapter is put in by PEFT's
    own functions instead, which are extended for both.
    """
    instance, arguments = call.instance, call.arguments
    load_config = arguments.get("load_config")
    given = arguments | (getattr(load_config, "download_kwargs", None) or {}) | (arguments.get("adapter_kwargs") or {})
    options = {name: given[name] for name in HUB_OPTIONS if given.get(name) is not None}
    model_id = arguments.get("peft_model_id") or getattr(load_config, "pretrained_model_name_or_path", None)
    config: Any = arguments.get("peft_config")
    import peft

    if config is None and model_id is not None:
        config = peft.PeftConfig.from_pretrained(model_id, **options)
    if getattr(config, "peft_type", None) != "MOE":
        return call.host()
    name = arguments.get("adapter_name") or "default"
    if name in getattr(instance, "peft_config", {}):
        raise ValueError(f"the model already has an adapter {name!r}: give another adapter_name")
    config.inference_mode = not arguments.get("is_trainable", False)
    tensors = arguments.get("adapter_state_dict")
    if tensors is None:
        tensors = peft.utils.load_peft_weights(str(model_id), device="cpu", **options)
    low_cpu_mem_usage = bool(arguments.get("low_cpu_mem_usage"))
    peft.inject_adapter_in_model(config, instance, name, low_cpu_mem_usage=low_cpu_mem_usage)
    peft.set_peft_model_state_dict(instance, tensors, adapter_name=name, low_cpu_mem_usage=low_cpu_mem_usage)
    instance._hf_peft_config_loaded = True
    if config.inference_mode:
        instance.eval()
    return None
