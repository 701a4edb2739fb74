"""Configuration of the PEFT method `moe`."""

# ruff: noqa: RUF009  (`_option` makes fields)

from __future__ import annotations

from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import torch
from peft.config import PeftConfig
from peft.utils import PeftType

from neuronmoe_plugins.autoload import require
from neuronmoe_plugins.blocks import TARGETS, ExpertTargets
from neuronmoe_plugins.tuner.experts import check_implementation
from neuronmoe_plugins.tuner.plans import LayerPlan, are_counts, make_plans, per_layer, transformed_layers
from neuronmoe_plugins.tuner.reference_format import accepts_published
from neuronmoe_plugins.tuner.saved_modules import TokenIndices, check_fields

LOSS_COEFFICIENTS = ("aux_loss_coef", "lpr_loss_coef", "classify_loss_coef", "sequential_add_loss_coef")
# lora_alpha / rank. Of two experts each has about half a token's weight: what is left is LoRA's usual 2.
DEFAULT_SCALE = 4
# Declared type of an option -> what its values are, and how they are called: a file may have been written by hand.
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "float | None": ((float, int, NoneType), "a number"),
    "str": ((str,), "a string"),
    "str | None": ((str, NoneType), "a string"),
}


def _option(default: Any, meaning: str) -> Any:
    """A field of the configuration, with what it means."""
    return field(default=default, metadata={"help": meaning})


@accepts_published
@dataclass
class MoeConfig(PeftConfig):
    """Configuration of a :class:`~neuronmoe_plugins.tuner.model.MoeModel`.

    Each transformed layer's MLP becomes a mixture of experts: expert 0 is the frozen original, the others start as
    its copies (NeuronMoE, arXiv 2603.05046, section 3.3; sparse upcycling, Komatsuzaki et al. 2023). Field names are
    those of the published checkpoints' `adapter_config.json`; docs/moe_config.md has them in a table. Counts per layer
    are one number for all transformed layers, or a list of one per transformed layer or one per layer of the model.

    Example:
        Six experts in the first layer and two in the second, while the third stays dense::

            config = MoeConfig(task_type="CAUSAL_LM", num_experts=[6, 2, 1], aux_loss_coef=0.01)
            model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained("three-layers"), config)

    Raises:
        ValueError: on a count below 1, a `topk` below 1, a negative loss coefficient, a value of another type than its
            field's, an unknown `adapter_dtype` or `experts_implementation`, or a field that has no effect without
            another that is not given.
    """

    num_experts: int | list[int] = _option(
        2, "Experts per layer, the base MLP included. A layer with 1 stays dense and has no router."
    )
    topk: int = _option(
        2,
        "Experts that each token uses, clamped to the layer's number of experts. With 2 or more the router "
        "weights are renormalised, so a fresh mixture equals the base model.",
    )
    expert_rank: int | list[int] | None = _option(
        None,
        "Rank of the experts beside the base: low-rank deltas on its linear layers, W + (lora_alpha / rank) B A, B "
        "zero at the start. Full copies of the base MLP when not given.",
    )
    lora_alpha: int | list[int] | None = _option(
        None,
        "Scales the deltas of expert_rank by lora_alpha / rank: one number, or a list like that of expert_rank. Four "
        "times the rank when not given, which a saved adapter says in numbers.",
    )
    use_rslora: bool = _option(False, "Scale by lora_alpha / sqrt(rank) instead (rank-stabilised LoRA).")
    targets: str = _option(
        ExpertTargets.MLP.value,
        "What experts of low rank change: mlp, attention (the linear layers of its blocks), or both, which then have a "
        "router each.",
    )
    layers_to_transform: int | list[int] | None = _option(
        None, "Indices of the decoder layers to transform; all of them when not given."
    )
    init_moe_weights: bool = _option(
        True, "Copy the base MLP into the new experts; without it they are left for a checkpoint to fill."
    )
    adapter_dtype: str | None = _option(
        None, "Dtype of the experts and routers, such as float32; the base MLP's when not given."
    )
    train_only_router: bool = _option(False, "Freeze all but routers and classifiers (stage 2 of the paper).")
    aux_loss_coef: float | None = _option(
        None, "Coefficient of the load-balancing loss, added to the LM loss in training."
    )
    aux_loss_per_sequence: bool = _option(
        False,
        "Balance within each sequence instead of over the micro-batch, so that gradient accumulation and "
        "data parallelism leave the loss exactly as it is in one batch.",
    )
    lpr_loss_coef: float | None = _option(
        None,
        "Coefficient of the language-prior routing loss, which draws old-language tokens (the model input "
        "`old_language_mask`) to expert 0.",
    )
    lpr_double_softmax: bool = _option(
        False, "Take the softmax twice in the language-prior loss, as the published code does."
    )
    old_num_experts: int | list[int] | None = _option(
        None,
        "Experts per layer of the adapter that this one extends, the base MLP included (1 where the layer "
        "was dense). They and their router rows are kept and frozen; the rest are new copies of the base.",
    )
    group_nums: int | list[int] | None = _option(
        None,
        "Language groups that a classifier in each layer tells apart, per sequence; 0 for a layer without "
        "one. Group 0 uses the base MLP alone, group 1 the first `old_num_experts` experts, the others all.",
    )
    classify_loss_coef: float | None = _option(
        None, "Coefficient of the classifiers' loss on the model input `group_tags`."
    )
    sequential_add_loss_coef: float | None = _option(
        None,
        "Coefficient of the loss that draws tokens to given experts (the model input `target_experts`, or "
        "those of the token's group in `group_tags`).",
    )
    modules_to_save: list[str] | None = _option(
        None,
        "Names of modules beside the mixtures, such as lm_head, that are copied, trained whole and saved with the "
        "adapter; `train_only_router` keeps them frozen.",
    )
    trainable_token_indices: TokenIndices | None = _option(
        None, "Tokens whose rows of the embedding are trained and saved; a dictionary names other modules with rows."
    )
    experts_implementation: str = _option(
        "auto",
        "How the experts are run: auto, loop, sorted or grouped_mm. All compute the same; auto is what "
        "NEURONMOE_EXPERTS_IMPLEMENTATION names, or grouped_mm on a GPU that can, but sorted elsewhere and for full "
        "copies with 8192 tokens or more.",
    )
    base_fingerprint: dict[str, str] | None = _option(
        None, "Some weights of the base model, written when the adapter is made, by which another one is known."
    )
    base_new_tokens: str | None = _option(
        None,
        "By which tokens the base model's vocabulary was extended, written when the adapter is made; a model with "
        "others is refused.",
    )

    # peft reads this attribute of every config; which MLPs are targets follows from `num_experts`.
    target_modules = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require("peft.peft_model", "peft.utils.save_and_load")
        self.peft_type = PeftType("MOE")
        # What a file says: the fields will be those of the model that the adapter is put into.
        self.made_on, self.made_with_tokens = self.base_fingerprint, self.base_new_tokens
        self._check_kinds()
        for name, least in (("num_experts", 1), ("old_num_experts", 1), ("group_nums", 0), ("expert_rank", 1)):
            counts = getattr(self, name)
            if counts is not None and not are_counts(counts, least):
                raise ValueError(
                    f"{name} must be an integer of at least {least}, or a list of such integers; got {counts!r}"
                )
        if isinstance(self.topk, list) or not are_counts(self.topk, 1):
            raise ValueError(f"topk must be an integer of at least 1; got {self.topk!r}")
        for name in LOSS_COEFFICIENTS:
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must not be negative; got {value}")
        check_implementation("experts_implementation", self.experts_implementation)
        self.modules_to_save = check_fields(self.modules_to_save, self.trainable_token_indices)
        self._check_dependencies()

    def _check_kinds(self) -> None:
        for name, declared in MoeConfig.__annotations__.items():
            kinds, called = KINDS.get(declared, ((), ""))
            value = getattr(self, name)
            if kinds and not (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))):
                raise ValueError(f"{name} must be {called}; got {value!r}")

    def _check_dependencies(self) -> None:
        alphas = self.lora_alpha if isinstance(self.lora_alpha, list) else [self.lora_alpha]
        are_numbers = bool(alphas) and all(isinstance(alpha, int | float) and alpha > 0 for alpha in alphas)
        if self.lora_alpha is not None and not (self.expert_rank and are_numbers):
            raise ValueError(f"lora_alpha must be above 0 and needs expert_rank; got {self.lora_alpha!r}")
        if self.use_rslora and self.expert_rank is None:
            raise ValueError("use_rslora has no effect without expert_rank")
        if self.targets not in TARGETS:
            raise ValueError(f"targets must be one of {', '.join(TARGETS)}; got {self.targets!r}")
        if self.targets != ExpertTargets.MLP and self.expert_rank is None:
            raise ValueError(f"targets is {self.targets}, which needs expert_rank: attention has no full copies")
        if self.adapter_dtype is not None and not isinstance(getattr(torch, self.adapter_dtype, None), torch.dtype):
            raise ValueError(f"adapter_dtype must name a dtype of torch, such as float32; got {self.adapter_dtype!r}")
        groups = [self.group_nums] if isinstance(self.group_nums, int) else self.group_nums or []
        if 1 in groups:
            raise ValueError("group_nums must be 0 (no classifier) or at least 2; got 1")
        if any(groups) and self.old_num_experts is None:
            raise ValueError("group_nums needs old_num_experts, the experts that sequences of group 1 may use")
        if self.classify_loss_coef and not any(groups):
            raise ValueError("classify_loss_coef has no classifier to train: set group_nums")

    def layer_plans(self, num_layers: int) -> dict[int, LayerPlan]:
        """What each decoder layer that becomes a mixture consists of.

        Args:
            num_layers: Number of decoder layers of the base model.

        Returns:
            Layer index -> plan; layers with one expert are left out.

        Raises:
            ValueError: if a list has another length than the layers, `layers_to_transform` names a layer that the model
                lacks, a layer would lose experts, or every layer would stay dense.
        """
        layers = transformed_layers(self.layers_to_transform, num_layers)
        num_experts = per_layer("num_experts", self.num_experts, layers, num_layers)
        old = None
        if self.old_num_experts is not None:
            old = per_layer("old_num_experts", self.old_num_experts, layers, num_layers)
        groups = per_layer("group_nums", self.group_nums or 0, layers, num_layers)
        shapes = None
        alphas = self.alphas()
        if self.expert_rank is not None and alphas is not None:
            ranks = per_layer("expert_rank", self.expert_rank, layers, num_layers)
            of_layers = per_layer("lora_alpha", alphas, layers, num_layers)
            shapes = {
                layer: (rank, of_layers[layer] / (rank**0.5 if self.use_rslora else rank))
                for layer, rank in ranks.items()
            }
        return make_plans(num_experts, old, groups, shapes)

    def to_dict(self) -> dict[str, Any]:
        """What is saved, which no later default of `lora_alpha` changes."""
        return {**super().to_dict(), "lora_alpha": self.alphas()}

    def alphas(self) -> int | list[int] | None:
        """`lora_alpha` in numbers, also where it was not given; None where experts are copies."""
        if self.lora_alpha is not None or self.expert_rank is None:
            return self.lora_alpha
        ranks = self.expert_rank
        return DEFAULT_SCALE * ranks if isinstance(ranks, int) else [DEFAULT_SCALE * rank for rank in ranks]
