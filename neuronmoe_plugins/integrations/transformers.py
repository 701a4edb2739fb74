"""transformers: its Trainer trains with the mixture's losses, and its models load `moe` adapters."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import wrapt

# What of a model's loading options concerns the place of the adapter.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def extend_trainer(module: ModuleType) -> None:
    """Post-import hook of `transformers.trainer`."""
    wrapt.wrap_function_wrapper(module, "Trainer.get_batch_samples", _get_batch_samples)
    wrapt.wrap_function_wrapper(module, "Trainer.__init__", _init)


def extend_adapter_loading(module: ModuleType) -> None:
    """Post-import hook of `transformers.integrations.peft`."""
    wrapt.wrap_function_wrapper(module, "PeftAdapterMixin.load_adapter", _load_adapter)


def _get_batch_samples(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Stand in for `Trainer.get_batch_samples`, which returns the micro-batches of one step and their item count.

    A micro-batch cannot know how many items of each of the mixture's losses the others hold, which the mean over all of
    them needs: every one is told.
    """
    batches, num_items = wrapped(*args, **kwargs)
    if num_items is None or not batches or _objective(instance) is None:
        return batches, num_items
    # Not at the top: the tuner imports peft, which may be what is importing transformers' trainer just now.
    from neuronmoe_plugins.tuner.inputs import count_items

    counts = [count_items(batch) for batch in batches]
    for name in counts[0]:
        total = torch.stack([count[name] for count in counts]).sum().to(instance.args.device)
        if instance.args.average_tokens_across_devices and instance.args.world_size > 1:
            total = instance.accelerator.gather(total).sum()
        for batch in batches:
            batch[name] = total
    return batches, num_items


def _init(wrapped: Callable[..., None], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Stand in for the constructor: whatever a subclass's `compute_loss` does, the mixture's losses are part of it."""
    wrapped(*args, **kwargs)
    if _objective(instance) is not None:
        instance.compute_loss = wrapt.FunctionWrapper(instance.compute_loss, _compute_loss)


def _compute_loss(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand in for `compute_loss(model, inputs, return_outputs, num_items_in_batch)`.

    Some trainers compute the LM loss from the logits and leave the model's own, with all that was added to it, unused.
    """
    result = wrapped(*args, **kwargs)
    trainer = getattr(wrapped, "__self__", instance)
    objective = _objective(trainer)
    added = None if objective is None else objective.added
    if added is None or not added.requires_grad:
        return result
    objective.added = None
    loss, *outputs = result if isinstance(result, tuple) else (result,)
    if not _depends_on(loss, added):
        over_processes = trainer.args.average_tokens_across_devices and kwargs.get("num_items_in_batch") is not None
        loss = loss + added * (trainer.accelerator.num_processes if over_processes else 1)
    return (loss, *outputs) if isinstance(result, tuple) else loss


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


def _objective(trainer: Any) -> Any:
    """The mixture's objective in the trainer's model, if there is one."""
    return next((o for m in trainer.model.modules() if (o := vars(m).get("moe_objective"))), None)


def _load_adapter(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand in for a model's `load_adapter(peft_model_id, adapter_name, peft_config, adapter_state_dict, ...)`.

    transformers warns of missing tensors and knows nothing of the published format: a `moe` adapter is put in by PEFT's
    own functions instead, which are extended for both.
    """
    arguments = inspect.signature(wrapped).bind(*args, **kwargs).arguments
    arguments |= arguments.pop("kwargs", {})
    load_config = arguments.get("load_config")
    given = arguments | (getattr(load_config, "download_kwargs", None) or {}) | (arguments.get("adapter_kwargs") or {})
    options = {name: given[name] for name in HUB_OPTIONS if given.get(name) is not None}
    model_id = arguments.get("peft_model_id") or getattr(load_config, "pretrained_model_name_or_path", None)
    config: Any = arguments.get("peft_config")
    import peft

    if config is None and model_id is not None:
        config = peft.PeftConfig.from_pretrained(model_id, **options)
    if getattr(config, "peft_type", None) != "MOE":
        return wrapped(*args, **kwargs)
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
