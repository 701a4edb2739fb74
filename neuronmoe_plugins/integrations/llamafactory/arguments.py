"""The YAML keys of `finetuning_type: moe`, as subclasses of LLaMA-Factory's argument dataclasses."""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal

from llamafactory.hparams.data_args import DataArguments
from llamafactory.hparams.finetuning_args import FinetuningArguments

from neuronmoe_plugins.blocks import TARGETS
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.llamafactory.learning_rates import OWN_RATES
from neuronmoe_plugins.languages import check_code
from neuronmoe_plugins.tuner.config import LOSS_COEFFICIENTS
from neuronmoe_plugins.tuner.experts import AUTO, check_implementation, wanted_implementation
from neuronmoe_plugins.tuner.plans import are_counts


def _of_moe(default: Any, explained: str) -> Any:
    """A field for an argument of `moe`; its help says so."""
    return field(default=default, metadata={"help": f"[moe] {explained}"})


@dataclass
class MoeFinetuningArguments(FinetuningArguments):
    """LLaMA-Factory's fine-tuning arguments and those of `moe`, under the names of the published code.

    Raises:
        UserError: on a value that cannot be, on two expert counts at once, and on an argument of `moe` given with
            another `finetuning_type`.
    """

    finetuning_type: Literal["lora", "oft", "freeze", "full", "moe"] = field(
        default="lora",
        metadata={"help": "Which fine-tuning method to use; `moe` adds experts to the MLPs (NeuronMoE)."},
    )
    topk: int | None = _of_moe(
        None, "Experts that each token uses. 2 when not given; an adapter's own when one is loaded."
    )
    moe_num_experts: int | None = _of_moe(
        None, "Experts in every layer, the base MLP included. A new adapter needs this or ada_moe_num_experts_list."
    )
    ada_moe_num_experts_list: str | None = _of_moe(
        None, "Experts of each layer, the base MLP included: `6,2,1` or a YAML list. A layer with 1 stays dense."
    )
    moe_expert_rank: str | None = _of_moe(
        None,
        "Rank of the new experts, low-rank deltas on the base MLP's linear layers: one for all layers, or `64,16` or a "
        "YAML list. Full copies of the MLP when not given; an adapter's own when one is loaded.",
    )
    moe_lora_alpha: int | None = _of_moe(
        None, "Scales the deltas of moe_expert_rank by moe_lora_alpha / rank; four times the rank when not given."
    )
    moe_use_rslora: bool = _of_moe(False, "Scale them by moe_lora_alpha / sqrt(rank) instead.")
    moe_targets: str | None = _of_moe(
        None,
        "What the deltas of moe_expert_rank change: mlp, attention, or both, with a router each. mlp when not given; "
        "an adapter's own when one is loaded.",
    )
    old_moe_num_experts_list: str | None = _of_moe(
        None,
        "Experts of each layer before an extension: `3,1,1` or a YAML list. Where they are those of the adapter in "
        "`adapter_name_or_path`, and ada_moe_num_experts_list is larger, they are kept frozen and new ones added. "
        "Sequences of language group 1 use them alone.",
    )
    group_nums: str | None = _of_moe(
        None,
        "Language groups that a classifier in each layer tells apart: an integer for all layers, or `0,2,2` or a YAML "
        "list, 0 for a layer without one. 0 alone drops the classifiers of the adapter. Group 0 uses the base MLP, "
        "group 1 the experts of old_moe_num_experts_list, the others all.",
    )
    layers_to_moe: str | None = _of_moe(
        None, "Decoder layers to transform: `0,1,29` or a YAML list. All when not given."
    )
    aux_loss_coef: float | None = _of_moe(None, "Coefficient of the load-balancing loss. No such loss when not given.")
    aux_loss_per_sequence: bool = _of_moe(
        False, "Balance the load within each sequence instead of over the micro-batch."
    )
    lpr_loss_coef: float | None = _of_moe(
        None,
        "Coefficient of the language-prior routing loss; needs `generate_lang_mask: true`. No such loss when not "
        "given.",
    )
    lpr_double_softmax: bool = _of_moe(
        False, "Take the softmax twice in the language-prior loss, as the published code does."
    )
    classify_loss_coef: float | None = _of_moe(
        None,
        "Coefficient of the loss of the classifiers of `group_nums`; needs `sequential_add_mask: true`. No such loss "
        "when not given.",
    )
    sequential_add_loss_coef: float | None = _of_moe(
        None,
        "Coefficient of the loss that draws each token to the experts of its language group; needs "
        "`sequential_add_mask: true`. No such loss when not given.",
    )
    train_only_router: bool = _of_moe(
        False, "Train routers and classifiers alone, from the adapter in `adapter_name_or_path` (stage 2)."
    )
    router_learning_rate: float | None = _of_moe(
        None, "Learning rate of the routers beside the experts; that of all else when not given."
    )
    train_new_tokens: bool = _of_moe(
        False,
        "Train the rows of the tokens by which `neuronmoe vocabulary` has extended the base model, and save them with "
        "the adapter.",
    )
    new_token_learning_rate: float | None = _of_moe(
        None, "Learning rate of the rows of new tokens; that of all else when not given."
    )
    experts_implementation: str | None = _of_moe(
        None,
        "How the experts are run: auto, loop, sorted or grouped_mm, which all compute the same. auto when not given; "
        "an adapter's own when one is loaded.",
    )
    moe_every_k_layers: int = _of_moe(
        1, "Of the published code: nothing but 1; name the layers in layers_to_moe instead."
    )
    moe_allow_arguments: str | None = _of_moe(
        None,
        "Arguments of the host that this package does not know, and that you have tried with `moe`: `a,b` or a YAML "
        "list.",
    )
    save_all_params: bool = _of_moe(
        False, "Of the published code: nothing but false; the base model stays frozen and unsaved."
    )

    def __post_init__(self) -> None:
        self.run: Any = None  # the one that they are read for
        method = self.finetuning_type
        # The host's own checks know a fixed list of methods; those for `full` are the ones that fit `moe`.
        self.finetuning_type = "full" if method == "moe" else method
        try:
            super().__post_init__()
        finally:
            self.finetuning_type = method
        given = given_moe_arguments(self)
        if method != "moe" and given:
            raise UserError(f"{', '.join(given)}: only valid with finetuning_type: moe, not {method}")
        self.expert_list: list[int] | None = _integers("ada_moe_num_experts_list", self.ada_moe_num_experts_list)
        self.old_expert_list: list[int] | None = _integers("old_moe_num_experts_list", self.old_moe_num_experts_list)
        self.group_counts: int | list[int] | None = _one_or_several("group_nums", self.group_nums)
        self.expert_rank: int | list[int] | None = _one_or_several("moe_expert_rank", self.moe_expert_rank)
        self.moe_layers: list[int] | None = _integers("layers_to_moe", self.layers_to_moe)
        if method == "moe":
            check_moe_arguments(self)


@dataclass
class MoeDataArguments(DataArguments):
    """LLaMA-Factory's data arguments and those of the tags that every token gets from its data set."""

    generate_lang_mask: bool = _of_moe(
        False,
        "Tell old-language tokens from new ones by the `language` of each data set in dataset_info.json, for the "
        "language-prior routing loss.",
    )
    original_languages: str | None = _of_moe(
        None, "Languages that count as old where data sets are tagged with language codes: `en,es,zh`."
    )
    sequential_add_mask: bool = _of_moe(
        False,
        "Tag every token with the language group of its data set, the `group_tag` in dataset_info.json (`g0`, `g1` or "
        "0, 1), for the losses of classify_loss_coef and sequential_add_loss_coef.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # dataset_info.json, once it is read.
        self.entries: dict[str, Any] | None = None
        self.of_moe = False
        # How the tokenizer fits each data set, while they are loaded.
        self.fits: Any = None
        self.old_languages: list[str] | None = words_of(self.original_languages)
        for language in self.old_languages or []:
            check_code("original_languages", language)
        if self.old_languages is not None and not self.generate_lang_mask:
            raise UserError("original_languages has no effect without generate_lang_mask: true")

    def __getstate__(self) -> dict[str, Any]:
        """The same in every run: the hash of a pickle names the host's cache of what these arguments made of data."""
        return vars(self) | {"entries": None, "of_moe": False, "fits": None}


def given_moe_arguments(arguments: FinetuningArguments | DataArguments) -> list[str]:
    """Names of the arguments added here that differ from their defaults."""
    return [f.name for f in added_fields(type(arguments)) if getattr(arguments, f.name) != f.default]


def added_fields(argument_class: type) -> list[Field[Any]]:
    """Fields that a class above adds to its host's class."""
    names = {f.name for f in inherited_fields(argument_class)}
    return [f for f in fields(argument_class) if f.name not in names]


def inherited_fields(argument_class: type) -> tuple[Field[Any], ...]:
    """Fields of the host's class, which a class above extends."""
    ours = issubclass(argument_class, MoeFinetuningArguments | MoeDataArguments)
    return fields(argument_class.__mro__[1] if ours else argument_class)


def words_of(value: str | list[Any] | int | None) -> list[str] | None:
    """Split `a,b` as the host does; a YAML list or a single number is as good."""
    if value is None:
        return None
    items = value if isinstance(value, list) else str(value).split(",")
    return [str(item).strip() for item in items]


def _integers(name: str, value: str | list[Any] | int | None) -> list[int] | None:
    """Read `6,2,1` or a YAML list as integers."""
    words = words_of(value)
    try:
        return None if words is None else [int(word) for word in words]
    except ValueError as error:
        raise UserError(f"{name} must be a list of integers such as 6,2,1; got {value!r}") from error


def _one_or_several(name: str, value: str | list[Any] | int | None) -> int | list[int] | None:
    """The same, where a single number that is not in a list stays one."""
    numbers = _integers(name, value)
    return numbers[0] if numbers is not None and len(numbers) == 1 and not isinstance(value, list) else numbers


def check_moe_arguments(arguments: MoeFinetuningArguments) -> None:
    """Refuse values that no run could use.

    Raises:
        UserError: naming the argument and its value.
    """
    for name, number in (("topk", arguments.topk), ("moe_num_experts", arguments.moe_num_experts)):
        if number is not None and (isinstance(number, list) or not are_counts(number, 1)):
            raise UserError(f"{name} must be an integer of at least 1; got {number!r}")
    lists = {"ada_moe_num_experts_list": arguments.expert_list, "old_moe_num_experts_list": arguments.old_expert_list}
    for name, counts in lists.items():
        if counts is not None and not are_counts(counts, 1):
            raise UserError(f"{name} must have a count of at least 1 for each layer (1 leaves it dense); got {counts}")
    groups = arguments.group_counts
    if groups is not None and not are_counts(groups, 0):
        raise UserError(f"group_nums must have a number of at least 0 for each layer; got {groups}")
    if arguments.expert_rank is not None and not are_counts(arguments.expert_rank, 1):
        raise UserError(f"moe_expert_rank must be at least 1 in each layer; got {arguments.expert_rank}")
    if arguments.moe_targets is not None and arguments.moe_targets not in TARGETS:
        raise UserError(f"moe_targets must be one of {', '.join(TARGETS)}; got {arguments.moe_targets!r}")
    if arguments.moe_layers is not None:
        _check_layers(arguments.moe_layers)
    if arguments.new_token_learning_rate == 0:
        raise UserError(
            "new_token_learning_rate must be above 0; leave train_new_tokens out to keep the rows as they are"
        )
    for name in (*LOSS_COEFFICIENTS, *OWN_RATES):
        _check_coefficient(name, getattr(arguments, name))
    if arguments.moe_num_experts is not None and arguments.expert_list is not None:
        raise UserError("moe_num_experts and ada_moe_num_experts_list: give one of them, not both")
    _check_implementation(arguments.experts_implementation)
    # Arguments of the published code are taken only as they are there by default.
    step = arguments.moe_every_k_layers
    if step != 1:
        raise UserError(
            f"moe_every_k_layers must be 1; got {step!r}: name the layers in layers_to_moe, or give the others 1 "
            "expert in ada_moe_num_experts_list"
        )
    if arguments.save_all_params:
        raise UserError("save_all_params must be false: the base model stays frozen, and is not saved with the adapter")


def _check_implementation(name: str | None) -> None:
    try:
        if name is not None:
            check_implementation("experts_implementation", name)
        # What the environment says is for the mixture to ask, but is refused before a model is loaded.
        wanted_implementation(name or AUTO)
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_layers(layers: list[int]) -> None:
    if min(layers, default=-1) < 0:
        raise UserError(f"layers_to_moe must name layers from 0 on; got {layers}")
    twice = sorted({layer for layer in layers if layers.count(layer) > 1})
    if twice:
        raise UserError(f"layers_to_moe names layers {twice} more than once: {layers}")


def _check_coefficient(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise UserError(f"{name} must be a finite number; got {value!r}")
    if value < 0:
        raise UserError(f"{name} must not be negative; got {value}")
