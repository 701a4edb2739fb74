"""Which experts a run has: those that the arguments name, and those of the adapter that it continues or extends.

Counts are compared and written as one per layer of the model, since a configuration has several forms for the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME

from neuronmoe_plugins.blocks import ExpertTargets
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.llamafactory.arguments import MoeFinetuningArguments
from neuronmoe_plugins.tuner import MoeConfig
from neuronmoe_plugins.tuner.config import DEFAULT_SCALE
from neuronmoe_plugins.tuner.plans import per_layer, transformed_layers

EXPERTS, OLD_EXPERTS, GROUPS = "ada_moe_num_experts_list", "old_moe_num_experts_list", "group_nums"
# Fields of a configuration that make its layers' plans, in several forms for the same, and others that a run keeps.
PLAN_FIELDS: tuple[str, ...] = (
    *("num_experts", "layers_to_transform", "expert_rank", "lora_alpha", "use_rslora", "old_num_experts", "group_nums"),
)
ROUTING_FIELDS: tuple[str, ...] = ("topk", "targets", "train_only_router")
Counts = int | list[int]


def new_adapter_experts(arguments: MoeFinetuningArguments) -> dict[str, Any]:
    """The arguments that fix a new adapter's experts, as far as they are given, under MoeConfig's names.

    Raises:
        UserError: if an argument speaks of an adapter to start from, or of ranks where there are none.
    """
    if arguments.old_expert_list is not None:
        raise UserError(f"{OLD_EXPERTS} speaks of the experts of an adapter: set adapter_name_or_path to it")
    if arguments.group_counts is not None:
        raise UserError(
            f"{GROUPS} needs an adapter whose experts are there already: set adapter_name_or_path and {OLD_EXPERTS}"
        )
    if arguments.moe_targets not in (None, ExpertTargets.MLP) and arguments.expert_rank is None:
        raise UserError(f"moe_targets is {arguments.moe_targets}: set moe_expert_rank, attention has no full copies")
    counts = {"num_experts": _expert_counts(arguments), "layers_to_transform": arguments.moe_layers}
    return {name: value for name, value in (counts | _low_rank(arguments)).items() if value is not None}


def apply_experts(config: MoeConfig, arguments: MoeFinetuningArguments, path: str, num_layers: int) -> None:
    """Let the configuration of an adapter follow the arguments about experts and groups.

    An adapter keeps its experts, unless `old_moe_num_experts_list` has their counts and `ada_moe_num_experts_list`
    larger ones: that extends it. Otherwise `old_moe_num_experts_list` only says what language group 1 may use.

    Args:
        config: The adapter's configuration; changed in place.
        arguments: Fine-tuning arguments with `finetuning_type: moe`.
        path: Where the adapter is, for errors.
        num_layers: Decoder layers of the base model.

    Raises:
        UserError: if the adapter's experts or groups are not those that the arguments speak of, or an argument has no
            effect.
        ValueError: if counts do not fit the model's layers.
    """
    _check_rank(config, arguments, path)
    experts = _AdapterExperts(config, arguments, path, num_layers)
    if arguments.old_expert_list is None:
        experts.check_same()
        if arguments.group_counts is None:
            return
        old = config.old_num_experts
        if old is not None:
            old = _spread("old_num_experts", old, config.layers_to_transform, num_layers, absent=1)
        counts = experts.present
    else:
        counts = experts.extended()
        old = experts.old_counts(counts)
        experts.check_ranks(counts)
    for name, absent in (("expert_rank", 1), ("lora_alpha", DEFAULT_SCALE)):
        if isinstance(value := getattr(config, name), list):
            setattr(config, name, _spread(name, value, config.layers_to_transform, num_layers, absent))
    config.group_nums = experts.groups(counts, old)
    config.num_experts, config.old_num_experts, config.layers_to_transform = counts, old, None


def check_resumed_experts(config: MoeConfig, checkpoint: Path, num_layers: int) -> None:
    """Refuse to go on with other experts, whose tensors the host loads wherever their shapes are alike.

    Args:
        config: The configuration of the run's adapter.
        checkpoint: What the run would go on from.
        num_layers: Decoder layers of the base model.

    Raises:
        UserError: naming the checkpoint and what differs.
    """
    file = checkpoint / CONFIG_NAME
    if not file.exists():
        return
    saved = MoeConfig.from_pretrained(str(checkpoint))
    names: tuple[str, ...] = ("peft_type",)
    if isinstance(saved, MoeConfig):
        same = saved.layer_plans(num_layers) == config.layer_plans(num_layers)
        names = ROUTING_FIELDS if same else PLAN_FIELDS + ROUTING_FIELDS
    before, now = saved.to_dict(), config.to_dict()
    different = [f"{name} {before[name]} instead of {now[name]}" for name in names if before[name] != now[name]]
    if different:
        raise UserError(
            f"{file} has {', '.join(different)}: give the same again, or start a new run with another output_dir or "
            "overwrite_output_dir: true"
        )


def drops_classifiers(arguments: MoeFinetuningArguments) -> bool:
    """Whether `group_nums` is 0 in every layer, for an adapter that has classifiers."""
    return arguments.group_counts is not None and not _any(arguments.group_counts)


@dataclass
class _AdapterExperts:
    """An adapter's counts and the arguments', one per layer of the model."""

    config: MoeConfig
    arguments: MoeFinetuningArguments
    path: str
    num_layers: int

    def __post_init__(self) -> None:
        try:
            plans = self.config.layer_plans(self.num_layers)
        except ValueError as error:
            raise UserError(f"adapter_name_or_path: {self.path} does not fit the model: {error}") from None
        self.present = [plans[layer].num_experts if layer in plans else 1 for layer in range(self.num_layers)]
        self.present_groups = [plans[layer].num_groups if layer in plans else 0 for layer in range(self.num_layers)]
        given = _expert_counts(self.arguments)
        self.key = EXPERTS if self.arguments.moe_num_experts is None else "moe_num_experts"
        self.wanted = None if given is None else self.of_arguments(self.key, given)

    def of_arguments(self, key: str, value: Counts, absent: int = 1) -> list[int]:
        """A list with every layer of the model may name layers that the adapter has left out."""
        layers = self.arguments.moe_layers
        if layers is None and (isinstance(value, int) or len(value) != self.num_layers):
            layers = transformed_layers(self.config.layers_to_transform, self.num_layers)
        return _spread(key, value, layers, self.num_layers, absent)

    def check_same(self) -> None:
        """Without a word about an extension, the adapter has the experts that the arguments give."""
        if self.wanted is not None and self.wanted != self.present:
            raise UserError(
                f"{self.key} is {_expert_counts(self.arguments)}, but the adapter in {self.path} has "
                f"{self.config.num_experts}: remove the key, an adapter brings its own experts; to extend the adapter, "
                f"give its counts in {OLD_EXPERTS}"
            )
        layers = self.arguments.moe_layers
        if layers is None or self.wanted is not None:
            return
        mixtures = [layer for layer, count in enumerate(self.present) if count > 1]
        of_adapter = transformed_layers(self.config.layers_to_transform, self.num_layers)
        if sorted(layers) not in (mixtures, sorted(of_adapter)):
            raise UserError(
                f"layers_to_moe is {layers}, but the adapter in {self.path} has {of_adapter}: remove the key, an "
                "adapter brings its own layers"
            )

    def extended(self) -> list[int]:
        """The counts of an extension, or those of the adapter if it is to be continued."""
        if self.wanted is None or self.wanted == self.present:
            return self.present
        given = self.arguments.old_expert_list or []
        if self.of_arguments(OLD_EXPERTS, given) != self.present:
            raise UserError(
                f"{OLD_EXPERTS} is {given} and {self.key} {_expert_counts(self.arguments)}, but the adapter in "
                f"{self.path} has {self.present}: give these counts in {OLD_EXPERTS} to extend it"
            )
        fewer = [layer for layer, count in enumerate(self.wanted) if count < self.present[layer]]
        if fewer:
            raise UserError(
                f"{self.key} is {_expert_counts(self.arguments)}, below the {self.present} of the adapter in "
                f"{self.path} in layers {fewer}: an extension only adds experts"
            )
        return self.wanted

    def check_ranks(self, counts: list[int]) -> None:
        """A layer that the adapter has left out has no rank in a list of its ranks."""
        layers = transformed_layers(self.config.layers_to_transform, self.num_layers)
        without = [layer for layer, count in enumerate(counts) if count > 1 and layer not in layers]
        if without and isinstance(self.config.expert_rank, list):
            raise UserError(
                f"{self.key} is {_expert_counts(self.arguments)}, but the adapter in {self.path} has no rank for "
                f"layers {without}: its ranks {self.config.expert_rank} are of layers {layers}, extend these alone"
            )

    def old_counts(self, counts: list[int]) -> list[int]:
        """`old_moe_num_experts_list`, which must have an effect."""
        given = self.arguments.old_expert_list or []
        old = self.of_arguments(OLD_EXPERTS, given)
        more = [layer for layer, count in enumerate(old) if count > counts[layer]]
        if more:
            raise UserError(
                f"{OLD_EXPERTS} is {given}, but the adapter in {self.path} has {self.present}, fewer in layers {more}: "
                "give the adapter's own counts, or those before it was extended"
            )
        unused = self.config.old_num_experts is None and not _any(self.arguments.group_counts or 0)
        if unused and old == counts:
            raise UserError(
                f"{OLD_EXPERTS} has no effect: it is what the adapter in {self.path} has. Give larger counts in "
                f"{EXPERTS} to extend the adapter, or {GROUPS} to route by language group"
            )
        return old

    def groups(self, counts: list[int], old: list[int] | None) -> list[int] | None:
        """Language groups per layer: the arguments' or else the adapter's."""
        given, groups = self.arguments.group_counts, self.present_groups
        if given is not None:
            asked = self.of_arguments(GROUPS, given, absent=0)
            groups = [number if counts[layer] > 1 else 0 for layer, number in enumerate(asked)]
            self._check_groups(given, groups)
        if not any(groups):
            return None
        if old is None:
            raise UserError(f"{GROUPS} needs {OLD_EXPERTS}, the experts that sequences of group 1 may use")
        unreachable = [layer for layer, number in enumerate(groups) if number == 2 and old[layer] < counts[layer]]
        if unreachable:
            raise UserError(
                f"{GROUPS} is 2 in layers {unreachable}, where group 0 uses the base MLP and group 1 the old experts "
                f"alone, so that nothing uses the others: give a third group, all counts in {OLD_EXPERTS}, or, while "
                f"new experts learn, {GROUPS}: 0"
            )
        return groups

    def _check_groups(self, given: Counts, groups: list[int]) -> None:
        if not _any(given):
            if not any(self.present_groups):
                raise UserError(f"{GROUPS} is {given} and has no effect: there are no classifiers to drop, remove it")
        elif not any(groups):
            raise UserError(f"{GROUPS} is {given}, which gives a classifier only to layers that stay dense")
        elif any(self.present_groups) and groups != self.present_groups:
            raise UserError(
                f"{GROUPS} is {given}, but the adapter in {self.path} has classifiers of {self.present_groups}: remove "
                f"the key, or drop them with {GROUPS}: 0"
            )
        elif not any(self.present_groups) and not self.arguments.classify_loss_coef:
            raise UserError(f"{GROUPS} adds classifiers that nothing would train: set classify_loss_coef")


def _low_rank(arguments: MoeFinetuningArguments) -> dict[str, Any]:
    """The arguments about experts of low rank, under MoeConfig's names."""
    return {
        "expert_rank": arguments.expert_rank,
        "lora_alpha": arguments.moe_lora_alpha,
        "use_rslora": arguments.moe_use_rslora or None,
        "targets": arguments.moe_targets,
    }


def _check_rank(config: MoeConfig, arguments: MoeFinetuningArguments, path: str) -> None:
    """An adapter keeps the kind of its experts."""
    for name, value in _low_rank(arguments).items():
        present = getattr(config, name)
        if value is not None and value != present:
            kind = "full copies of the MLP" if config.expert_rank is None else f"{name} {present}"
            remedy = "remove the key"
            if name == "expert_rank":
                remedy += ", or take what `neuronmoe compress` makes of the adapter, the nearest experts of that rank"
            raise UserError(f"moe_{name} is {value}, but the adapter in {path} has {kind}: {remedy}")


def _expert_counts(arguments: MoeFinetuningArguments) -> Counts | None:
    return arguments.moe_num_experts or arguments.expert_list


def _spread(
    name: str, value: Counts, layers_to_transform: int | Sequence[int] | None, num_layers: int, absent: int
) -> list[int]:
    """One count per layer of the model, `absent` where the layer is not transformed."""
    counts = per_layer(name, value, transformed_layers(layers_to_transform, num_layers), num_layers)
    return [counts.get(layer, absent) for layer in range(num_layers)]


def _any(counts: Counts) -> bool:
    return bool(counts) if isinstance(counts, int) else any(counts)
