"""Configuration of the PEFT method `moe`."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.config import PeftConfig
from peft.utils import PeftType


@dataclass
class MoeConfig(PeftConfig):
    """Configuration of a :class:`~neuronmoe_plugins.tuner.model.MoeModel`.

    Each transformed layer's MLP becomes a mixture of experts: expert 0 is the frozen original, the others start as
    its copies (NeuronMoE, arXiv 2603.05046, section 3.3; sparse upcycling, Komatsuzaki et al. 2023). Field names are
    those of the published checkpoints' `adapter_config.json`.

    Raises:
        ValueError: on a count below 1, a `topk` below 1 or a negative loss coefficient.
    """

    num_experts: int | list[int] = field(
        default=2,
        metadata={
            "help": "Experts per layer, the base MLP included: one count for all transformed layers or one per "
            "transformed layer. A layer with 1 stays dense and has no router."
        },
    )
    topk: int = field(
        default=2,
        metadata={
            "help": "Experts that each token uses, clamped to the layer's number of experts. With 2 or more the router "
            "weights are renormalised, so a fresh mixture equals the base model."
        },
    )
    layers_to_transform: int | list[int] | None = field(
        default=None, metadata={"help": "Indices of the decoder layers to transform; all of them when not given."}
    )
    init_moe_weights: bool = field(
        default=True,
        metadata={"help": "Copy the base MLP into the new experts; without it they are left for a checkpoint to fill."},
    )
    train_only_router: bool = field(
        default=False, metadata={"help": "Freeze all but the routers (stage 2 of the paper)."}
    )
    aux_loss_coef: float | None = field(
        default=None, metadata={"help": "Coefficient of the load-balancing loss, added to the LM loss in training."}
    )
    lpr_loss_coef: float | None = field(
        default=None,
        metadata={
            "help": "Coefficient of the language-prior routing loss, which draws old-language tokens (the model input "
            "`old_language_mask`) to expert 0."
        },
    )
    lpr_double_softmax: bool = field(
        default=False,
        metadata={"help": "Take the softmax twice in the language-prior loss, as the published code does."},
    )

    # peft reads this attribute of every config; which MLPs are targets follows from `num_experts`.
    target_modules = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("MOE")
        counts = [self.num_experts] if isinstance(self.num_experts, int) else self.num_experts
        if not counts or any(not isinstance(count, int) or isinstance(count, bool) or count < 1 for count in counts):
            raise ValueError(
                f"num_experts must be an integer of at least 1, or a list of such integers; got {self.num_experts!r}"
            )
        if self.topk < 1:
            raise ValueError(f"topk must be at least 1; got {self.topk}")
        for name in ("aux_loss_coef", "lpr_loss_coef"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must not be negative; got {value}")

    def experts_per_layer(self, num_layers: int) -> dict[int, int]:
        """Number of experts of each decoder layer that becomes a mixture.

        Args:
            num_layers: Number of decoder layers of the base model.

        Returns:
            Layer index -> number of experts, the base MLP included; layers with one expert are left out.

        Raises:
            ValueError: if the list has another length than the transformed layers, names a layer that the model lacks,
                or leaves every layer dense.
        """
        layers = range(num_layers) if self.layers_to_transform is None else self.layers_to_transform
        layers = [layers] if isinstance(layers, int) else list(layers)
        unknown = [layer for layer in layers if not 0 <= layer < num_layers]
        if unknown:
            raise ValueError(
                f"layers_to_transform names layers {unknown}, but the model has layers 0..{num_layers - 1}"
            )
        counts = [self.num_experts] * len(layers) if isinstance(self.num_experts, int) else self.num_experts
        if len(counts) != len(layers):
            raise ValueError(
                f"num_experts has {len(counts)} entries, but {len(layers)} of the model's {num_layers} layers are "
                "transformed: give one count per layer"
            )
        experts = {layer: count for layer, count in zip(layers, counts, strict=True) if count > 1}
        if not experts:
            raise ValueError("num_experts is 1 in every layer: there is no mixture to train")
        return experts
