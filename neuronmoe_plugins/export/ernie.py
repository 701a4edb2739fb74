"""Ernie 4.5 MoE as a container: the one whose layers can have unequal numbers of experts.

Shapes: weights are (out, in), a router (num_experts, hidden).
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch

from neuronmoe_plugins.export.containers import PROJECTIONS, Container, Tensors, expert_tensors, head_size, windows
from neuronmoe_plugins.export.mixture import Mixture
from neuronmoe_plugins.export.sources import Source, zeros


class Ernie45Moe(Container):
    """Ernie 4.5 MoE: a bias chooses experts and has no part in their weights, so that layers can have fewer.

    What a layer lacks to the largest count is experts of zeros that the bias never lets be chosen. Their router rows
    are those of expert 0, so that the softmax over all stays within what it is without them. A dense layer between
    mixtures has as many copies of its MLP as a token uses experts. Rotary positions turn neighbouring units there, and
    units half a head apart in the bases, whose queries' and keys' rows are therefore put in that order.
    """

    model_type = "ernie4_5_moe"
    architecture = "Ernie4_5_MoeForCausalLM"
    families: ClassVar[tuple[str, ...]] = ("llama", "mistral")
    NEVER: ClassVar[float] = -1e4

    def own_refusal(self, mixture: Mixture) -> str | None:
        """A top-k of 1, or above a layer's experts; sliding windows."""
        topk, least = mixture.config.topk, min(plan.num_experts for plan in mixture.plans.values())
        if topk == 1:
            return "it renormalises the weights of a top-k of 1 to 1, and the adapter keeps the router's probability"
        if topk > least and len({plan.num_experts for plan in mixture.plans.values()}) > 1:
            return f"a token uses {topk} experts in each of its layers, and one of the adapter's has {least}"
        return "it has no sliding windows" if windows(mixture) else None

    def own_config(self, mixture: Mixture) -> dict[str, Any]:
        """Counts and places of the mixtures."""
        sparse = self.sparse_layers(mixture)
        return {
            "head_dim": head_size(mixture.base.config),
            "use_bias": False,
            "moe_num_experts": self._count(mixture),
            "moe_k": self._topk(mixture),
            "moe_num_shared_experts": 0,
            "moe_layer_start_index": min(sparse),
            "moe_layer_end_index": max(sparse),
            "moe_layer_interval": 1,
            "output_router_logits": False,
        }

    def sparse_layers(self, mixture: Mixture) -> set[int]:
        """All from the first mixture to the last."""
        return set(range(min(mixture.plans), max(mixture.plans) + 1))

    def attention(self, mixture: Mixture, name: str, source: Source) -> Tensors:
        """The rows of queries and keys in the order of its rotary positions."""
        yield name, neighbouring(mixture, name, source)

    def block(self, mixture: Mixture, layer: int) -> Tensors:
        """Experts and router, filled up to the largest count, and the bias."""
        count, plan = self._count(mixture), mixture.plans.get(layer)
        real = self._topk(mixture) if plan is None else plan.num_experts
        for expert in range(count):
            if expert < real:
                yield from expert_tensors(mixture, layer, expert, 0 if plan is None else expert)
            else:
                for projection in PROJECTIONS:
                    shape = mixture.expert(layer, 0, projection).shape
                    yield f"experts.{expert}.{projection}.weight", zeros(*shape)
        hidden = mixture.base.config.hidden_size
        if plan is None:
            yield "gate.weight", zeros(count, hidden)
        else:
            yield "gate.weight", Source((count, hidden), partial(_filled_up, mixture.router(layer), count))
        bias = torch.where(torch.arange(count) < real, 0.0, self.NEVER)[None]
        yield "moe_statics.e_score_correction_bias", Source((1, count), lambda: bias)

    def _count(self, mixture: Mixture) -> int:
        return max(mixture.counts.values())

    def _topk(self, mixture: Mixture) -> int:
        return min(mixture.config.topk, self._count(mixture))


def neighbouring(mixture: Mixture, name: str, source: Source) -> Source:
    """A tensor of attention; of queries and keys with the rows that rotary positions turn together side by side."""
    if ".q_proj." in name or ".k_proj." in name:
        return Source(source.shape, partial(_neighbours, source, head_size(mixture.base.config)))
    return source


def _filled_up(router: Source, count: int) -> torch.Tensor:
    """A router with copies of its first row, (count, hidden)."""
    rows = router.read()
    return torch.cat([rows, rows[:1].expand(count - len(rows), -1)])


def _neighbours(source: Source, size: int) -> torch.Tensor:
    """(heads x size, hidden), or biases, with units i and i + size / 2 of each head beside each other."""
    weight = source.read()
    return weight.view(-1, 2, size // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
