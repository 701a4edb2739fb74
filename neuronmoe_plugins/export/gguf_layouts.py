"""Architectures of llama.cpp that compute exactly what a mixture does, and what their GGUF files say of themselves.

llama.cpp has one number of experts per model, and mixtures in every layer, or in all from some layer on. It takes a
softmax over all experts and renormalises the top-k of it in the three architectures below. (Not in its `qwen2moe`.)

Shapes: weights are (out, in), a stack of experts (experts, out, in), a router (experts, hidden).
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import ClassVar

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from neuronmoe_plugins.export.containers import (
    QKV_BIASES,
    Container,
    OneCount,
    Qwen3Moe,
    Tensors,
    expert_tensors,
    head_size,
    windows,
)
from neuronmoe_plugins.export.ernie import Ernie45Moe, neighbouring
from neuronmoe_plugins.export.mixture import Mixture
from neuronmoe_plugins.export.sources import Source, zeros
from neuronmoe_plugins.host_versions import rotary_settings

BESIDE_LAYERS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_LAYER = {
    **{f"self_attn.{letter}_proj": f"attn_{letter}" for letter in "qkv"},
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    "mlp.gate": "ffn_gate_inp",
}
SELECTION = "e_score_correction_bias"
# Divisors of the frequencies of rotary positions; only the architecture `llama` reads them.
ROPE_FACTORS = "rope_freqs.weight"


class Layout(Container):
    """What the three have in common.

    Attributes:
        is_scaled: Whether it reads `ROPE_FACTORS`.
    """

    is_scaled: ClassVar[bool] = False

    def known_here(self) -> bool:
        """llama.cpp is what must know it."""
        return True

    def own_refusal(self, mixture: Mixture) -> str | None:
        """A top-k of 1, sliding windows, scaled positions; and what else it cannot hold."""
        if mixture.config.topk == 1:
            return "it renormalises the weights of a top-k of 1 to 1, and the adapter keeps the router's probability"
        if windows(mixture):
            return "it has no sliding windows"
        scaling = (rotary_settings(mixture.base.config)[1] or {}).get("rope_type")
        if scaling is not None and not (self.is_scaled and scaling == "llama3"):
            return f"it has no rotary positions that are scaled by {scaling}"
        return super().own_refusal(mixture)  # type: ignore[safe-super]

    def metadata(self, mixture: Mixture) -> dict[str, int | float]:
        """What the file says of the architecture, without its name before each key."""
        config, count = mixture.base.config, max(mixture.counts.values())
        size = head_size(config)
        return {
            "block_count": config.num_hidden_layers,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "expert_feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": size,
            "attention.value_length": size,
            "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
            "rope.dimension_count": size,
            "rope.freq_base": float(rotary_settings(config)[0]),
            "vocab_size": config.vocab_size,
            "expert_count": count,
            "expert_used_count": min(mixture.config.topk, count),
        }

    def file_tensors(self, mixture: Mixture) -> dict[str, Source]:
        """All tensors by their names in the file, experts stacked."""
        tensors: dict[str, Source] = {}
        stacks: dict[str, list[Source]] = defaultdict(list)
        for name, source in self.tensors(mixture):
            if ".mlp.experts." in name:
                _, _, layer, _, _, _, projection, _ = name.split(".")
                stacks[f"blk.{layer}.ffn_{projection.removesuffix('_proj')}_exps.weight"].append(source)
            elif name.endswith(SELECTION):
                tensors[_file_name(name)] = Source(source.shape[1:], partial(_first, source))
            else:
                tensors[_file_name(name)] = source
        return tensors | {
            name: Source((len(each), *each[0].shape), partial(_stack, each)) for name, each in stacks.items()
        }


class _InEveryLayer(Layout):
    """One whose layers all have the same number of experts, which are copies of its MLP where a layer is dense."""

    def sparse_layers(self, mixture: Mixture) -> set[int]:
        """All."""
        return set(mixture.base.mlps)

    def block(self, mixture: Mixture, layer: int) -> Tensors:
        """Experts and router; copies get equal weights, which are 1 together."""
        count, is_mixture = max(mixture.counts.values()), layer in mixture.plans
        for expert in range(count):
            yield from expert_tensors(mixture, layer, expert, expert if is_mixture else 0)
        yield "gate.weight", mixture.router(layer) if is_mixture else zeros(count, mixture.base.config.hidden_size)


class GgufErnie(Layout, Ernie45Moe):
    """`ernie4_5-moe`: any list; mixtures from the first to the last layer, filled up as for transformers."""

    architecture = "ernie4_5-moe"
    families = ("llama", "mistral", "qwen2")
    extra_tensors = QKV_BIASES

    def sparse_layers(self, mixture: Mixture) -> set[int]:
        """All from the first mixture on."""
        return set(range(min(mixture.plans), len(mixture.base.mlps)))

    def metadata(self, mixture: Mixture) -> dict[str, int | float]:
        """Where the mixtures begin, too."""
        places = {"leading_dense_block_count": min(mixture.plans), "interleave_moe_layer_step": 1}
        return super().metadata(mixture) | places


class GgufLlama(_InEveryLayer, OneCount):
    """`llama`, with experts: Mixtral's. Rotary positions turn neighbouring units, as in Ernie."""

    architecture = "llama"
    families = ("llama", "mistral", "qwen2")
    extra_tensors = QKV_BIASES
    is_scaled = True

    def attention(self, mixture: Mixture, name: str, source: Source) -> Tensors:
        """The rows of queries and keys in the order of its rotary positions."""
        yield name, neighbouring(mixture, name, source)

    def file_tensors(self, mixture: Mixture) -> dict[str, Source]:
        """The factors of scaled positions, too."""
        config, tensors = mixture.base.config, super().file_tensors(mixture)
        theta, scaling = rotary_settings(config)
        if scaling is not None:
            size = head_size(config)
            plain = theta ** -(torch.arange(0, size, 2).double() / size)
            scaled = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0].double()
            tensors[ROPE_FACTORS] = Source((size // 2,), lambda: plain / scaled)
        return tensors


class GgufQwen3(_InEveryLayer, Qwen3Moe):
    """`qwen3moe`."""

    architecture = "qwen3moe"


# For lists that both hold, the first of the two that are equally large.
LAYOUTS: tuple[Layout, ...] = (GgufLlama(), GgufQwen3(), GgufErnie())


def _file_name(name: str) -> str:
    if name in BESIDE_LAYERS:
        return BESIDE_LAYERS[name]
    _, _, layer, inner = name.split(".", 3)
    if inner.endswith(SELECTION):
        return f"blk.{layer}.exp_probs_b.bias"
    part, _, kind = inner.rpartition(".")
    return f"blk.{layer}.{IN_LAYER[part]}.{kind}"


def _stack(sources: list[Source]) -> torch.Tensor:
    return torch.stack([source.read().float() for source in sources])


def _first(source: Source) -> torch.Tensor:
    return source.read()[0]
