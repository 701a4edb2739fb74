"""Architectures of transformers that compute exactly what a mixture does, and how its tensors lie in each.

A mixture is a softmax over all experts, the top-k of it, renormalised unless k is 1, and expert 0 is the base MLP. All
containers have the MLPs' copies as `mlp.experts.{e}.{projection}.weight`, the layout that every version of
transformers and the engines read, and the router as `mlp.gate.weight`.

Shapes: weights are (out, in), a router (num_experts, hidden).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from transformers import CONFIG_MAPPING

from neuronmoe_plugins.export.mixture import Mixture
from neuronmoe_plugins.export.sources import Source, zeros
from neuronmoe_plugins.host_versions import rotary_settings

Tensors = Iterator[tuple[str, Source]]
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
# What every container has a place for: in a decoder layer, and beside the layers.
OF_LAYER = {
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}.weight" for name in PROJECTIONS),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
}
BESIDE_LAYERS = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
QKV_BIASES = {f"self_attn.{name}_proj.bias" for name in "qkv"}
SHARED_CONFIG = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("use_cache", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
)


class Container(ABC):
    """An architecture, and what of a mixture it can hold.

    Attributes:
        model_type: Its name in a config.json.
        architecture: Its class in transformers.
        families: The model types of bases that it computes like.
        extra_tensors: What a layer may have beside `OF_LAYER`.
        needs: What runs it, for its card.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    families: ClassVar[tuple[str, ...]]
    extra_tensors: ClassVar[set[str]] = set()
    needs: ClassVar[str] = "It needs no\npackage but transformers, or an engine that knows the architecture:"

    def known_here(self) -> bool:
        """Whether what shall run it knows it."""
        return self.model_type in CONFIG_MAPPING

    def refusal(self, mixture: Mixture) -> str | None:
        """Why it cannot hold a mixture exactly; None if it can."""
        config = mixture.base.config
        if config.model_type not in self.families:
            return f"it holds mixtures on {', '.join(self.families)}, not on {config.model_type}"
        if not self.known_here():
            return "the installed transformers does not know it; install a newer one"
        known = OF_LAYER | self.extra_tensors
        for name in mixture.base.names:
            if name not in BESIDE_LAYERS and name.split(".", 3)[-1] not in known:
                return f"it has no place for {name}"
        if config.hidden_act != "silu":
            return f"it is run with the activation silu, and the base has {config.hidden_act}"
        return self.own_refusal(mixture)

    @abstractmethod
    def own_refusal(self, mixture: Mixture) -> str | None:
        """What it alone cannot hold."""

    @abstractmethod
    def own_config(self, mixture: Mixture) -> dict[str, Any]:
        """The keys of config.json that it alone has."""

    @abstractmethod
    def sparse_layers(self, mixture: Mixture) -> set[int]:
        """The decoder layers that have a router in it."""

    @abstractmethod
    def block(self, mixture: Mixture, layer: int) -> Tensors:
        """What it has in place of an MLP, by name below `mlp`."""

    def attention(self, mixture: Mixture, name: str, source: Source) -> Tensors:
        """What it has in place of a tensor that is not of an MLP."""
        yield name, source

    def config(self, mixture: Mixture, dtype: torch.dtype) -> dict[str, Any]:
        """config.json, in the form that transformers 4 and 5 both read."""
        base = mixture.base.config
        theta, scaling = rotary_settings(base)
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "torch_dtype": str(dtype).removeprefix("torch."),
            **{key: getattr(base, key) for key in SHARED_CONFIG},
            "attention_dropout": 0.0,
            "rope_theta": theta,
            "rope_scaling": scaling,
            "moe_intermediate_size": base.intermediate_size,
            **self.own_config(mixture),
        }

    def tensors(self, mixture: Mixture) -> Tensors:
        """All tensors by name, layer by layer."""
        base, sparse, done = mixture.base, self.sparse_layers(mixture), set()
        for name in base.names:
            layer = base.mlp_layer.get(name)
            if layer is None:
                yield from self.attention(mixture, name, mixture.weight(name))
            elif layer not in sparse:
                yield name, base.files.source(name)
            elif layer not in done:
                done.add(layer)
                for inner, source in self.block(mixture, layer):
                    yield f"{base.mlps[layer].name}.{inner}", source


class OneCount(Container):
    """One that has the same number of experts in each of its mixtures, and plain MLPs in the other layers."""

    def own_refusal(self, mixture: Mixture) -> str | None:
        """Uneven counts, and a window in some layers alone."""
        counts = {plan.num_experts: layer for layer, plan in mixture.plans.items()}
        if len(counts) > 1:
            (few, one), (many, other) = min(counts.items()), max(counts.items())
            found = f"layer {one} has {few} experts, layer {other} {many}"
            return f"all its mixtures have one count, and {found} (neuronmoe allocate --equal-experts makes equal ones)"
        window = windows(mixture)
        if 0 < len(window) < len(mixture.base.mlps):
            return f"its layers all have a sliding window or none, and here {len(window)} have one"
        return None

    def own_config(self, mixture: Mixture) -> dict[str, Any]:
        """The counts, and the window."""
        count = next(iter(mixture.plans.values())).num_experts
        window, num_layers = windows(mixture), len(mixture.base.mlps)
        sliding: dict[str, Any] = {"use_sliding_window": False, "sliding_window": None}
        if window:
            sliding = {
                "use_sliding_window": True,
                "sliding_window": mixture.base.config.sliding_window,
                "max_window_layers": 0,
                "layer_types": ["sliding_attention"] * num_layers,
            }
        return sliding | {
            "num_experts": count,
            "num_experts_per_tok": min(mixture.config.topk, count),
            "norm_topk_prob": mixture.config.topk > 1,
            "decoder_sparse_step": 1,
            "mlp_only_layers": sorted(mixture.base.mlps.keys() - mixture.plans.keys()),
            "output_router_logits": False,
        }

    def sparse_layers(self, mixture: Mixture) -> set[int]:
        """The mixtures."""
        return set(mixture.plans)

    def block(self, mixture: Mixture, layer: int) -> Tensors:
        """The experts and the router."""
        for expert in range(mixture.plans[layer].num_experts):
            yield from expert_tensors(mixture, layer, expert, expert)
        yield "gate.weight", mixture.router(layer)


class Qwen2Moe(OneCount):
    """Qwen2-MoE: with a shared expert, here one that gives nothing, and biases of queries, keys and values."""

    model_type = "qwen2_moe"
    architecture = "Qwen2MoeForCausalLM"
    families = ("llama", "mistral", "qwen2")
    extra_tensors = QKV_BIASES
    # Of the shared expert: as few units as can still be split over the devices of an engine.
    SHARED_UNITS: ClassVar[int] = 8

    def own_refusal(self, mixture: Mixture) -> str | None:
        """Heads of another size than hidden_size / num_attention_heads, too."""
        config = mixture.base.config
        size, usual = head_size(config), config.hidden_size // config.num_attention_heads
        if size != usual:
            return f"its heads have hidden_size / num_attention_heads = {usual} units, and the base's {size}"
        return super().own_refusal(mixture)

    def own_config(self, mixture: Mixture) -> dict[str, Any]:
        """The shared expert, too."""
        own = {"shared_expert_intermediate_size": self.SHARED_UNITS, "qkv_bias": True}
        return super().own_config(mixture) | own

    def attention(self, mixture: Mixture, name: str, source: Source) -> Tensors:
        """Biases of zero where the base has none."""
        yield name, source
        bias = f"{name.removesuffix('.weight')}.bias"
        if bias.split(".", 3)[-1] in QKV_BIASES and bias not in mixture.base.names:
            yield bias, zeros(source.shape[0])

    def block(self, mixture: Mixture, layer: int) -> Tensors:
        """The shared expert, too, of zeros."""
        yield from super().block(mixture, layer)
        hidden, units = mixture.base.config.hidden_size, self.SHARED_UNITS
        for projection in PROJECTIONS:
            shape = (hidden, units) if projection == "down_proj" else (units, hidden)
            yield f"shared_expert.{projection}.weight", zeros(*shape)
        yield "shared_expert_gate.weight", zeros(1, hidden)


class Qwen3Moe(OneCount):
    """Qwen3-MoE: with norms of queries and keys."""

    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    families = ("qwen3",)
    extra_tensors: ClassVar[set[str]] = {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}

    def own_config(self, mixture: Mixture) -> dict[str, Any]:
        """The size of the heads, too."""
        own = {"head_dim": head_size(mixture.base.config), "attention_bias": False}
        return super().own_config(mixture) | own


def expert_tensors(mixture: Mixture, layer: int, place: int, expert: int) -> Tensors:
    for projection in PROJECTIONS:
        yield f"experts.{place}.{projection}.weight", mixture.expert(layer, expert, projection)


def head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def windows(mixture: Mixture) -> list[int]:
    """The decoder layers whose attention has a sliding window."""
    config, layers = mixture.base.config, list(mixture.base.mlps)
    if getattr(config, "layer_types", None):
        return [layer for layer in layers if config.layer_types[layer] == "sliding_attention"]
    if not getattr(config, "sliding_window", None) or not getattr(config, "use_sliding_window", True):
        return []
    return [layer for layer in layers if layer >= getattr(config, "max_window_layers", 0)]
