"""How many parameters a training adds to a model, counted from the model's configuration: no weights are read."""

from __future__ import annotations

from functools import cache

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from neuronmoe_plugins.allocation.scores import read_shapes
from neuronmoe_plugins.blocks import ExpertTargets
from neuronmoe_plugins.models import cached_config, new_token_rows
from neuronmoe_plugins.neurons.places import expert_sizes
from neuronmoe_plugins.study.arguments import Values

# What these change is not counted.
OTHERS = ("additional_target", "use_dora", "use_llama_pro", "freeze_extra_modules")


def count_parameters(model: str, arguments: Values) -> int | None:
    """What LLaMA-Factory adds as an adapter, or trains of the model where it saves the model itself.

    Args:
        model: Folder or hub name.
        arguments: Of LLaMA-Factory.

    Returns:
        None where it is not known: the model is not here, or of a kind that is not known.

    Raises:
        UserError: if experts of that rank do not fit the model.
    """
    skeleton = _skeleton(model)
    if skeleton is None or any(map(arguments.get, OTHERS)):
        return None
    method = arguments["finetuning_type"]
    if method == "moe":
        return _of_experts(skeleton, arguments)
    return _of_lora(skeleton, arguments) if method == "lora" else _of_weights(skeleton, arguments)


def _of_experts(skeleton: PreTrainedModel, arguments: Values) -> int | None:
    num_experts = arguments["ada_moe_num_experts_list"]
    sizes = {"hidden_size": skeleton.config.get_text_config().hidden_size, **expert_sizes(skeleton)}
    shapes = read_shapes(skeleton.config.name_or_path, sizes, len(num_experts))
    targets = ExpertTargets(arguments.get("moe_targets") or ExpertTargets.MLP)
    rank = arguments.get("moe_expert_rank")
    if shapes is not None and rank is not None:
        shapes.check_rank(num_experts, rank, targets)
    of_rank = None if shapes is None else shapes.of_rank(rank, targets)
    if of_rank is None:
        return None
    rows = new_token_rows(skeleton.config) if arguments.get("train_new_tokens") else None
    trained = sum(map(len, rows.values())) if isinstance(rows, dict) else len(rows or ())
    return sum(of_rank.added_parameters(num_experts)) + trained * sizes["hidden_size"]


def _of_lora(skeleton: PreTrainedModel, arguments: Values) -> int:
    """Two matrices beside every weight that is named, from all its inputs to the rank and from there to its outputs."""
    named = dict(skeleton.named_modules())
    targets = _names(arguments["lora_target"])
    if targets == {"all"}:
        linear = [name for name, module in named.items() if "Linear" in type(module).__name__]
        targets = {name.split(".")[-1] for name in linear if "lm_head" not in name}
    chosen = [module for name, module in named.items() if any(f".{name}".endswith(f".{each}") for each in targets)]
    sides = [sum(module.weight.shape) for module in chosen if isinstance(getattr(module, "weight", None), torch.Tensor)]
    return int(arguments["lora_rank"]) * sum(sides)


def _of_weights(skeleton: PreTrainedModel, arguments: Values) -> int:
    """All of the model's own, or those of the first or last layers."""
    parts = [""]
    if arguments["finetuning_type"] == "freeze":
        count = arguments["freeze_trainable_layers"]
        layers = list(range(skeleton.config.get_text_config().num_hidden_layers))
        names = ["" if name == "all" else name for name in _names(arguments["freeze_trainable_modules"])]
        parts = [f".{layer}.{name}" for layer in (layers[-count:] if count > 0 else layers[:-count]) for name in names]
    return sum(own.numel() for name, own in skeleton.named_parameters() if any(part in name for part in parts))


def _names(listed: object) -> set[str]:
    return {name.strip() for name in str(listed).split(",")}


@cache
def _skeleton(model: str) -> PreTrainedModel | None:
    """The model without memory for its weights; None if it is not here, or transformers does not have its kind."""
    path = cached_config(model)
    if path is None:
        return None
    try:
        with torch.device("meta"):
            found: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path.parent))
    except (OSError, ValueError):
        return None
    return found
