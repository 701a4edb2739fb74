"""Mixture layers to time: this package's, the published code's loop, and the dense MLP that is the least to do."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from benchmarks.models import DEVICE
from neuronmoe_plugins.feed_forward.family import feed_forward_families
from neuronmoe_plugins.tuner import MoeConfig, MoeLayer
from neuronmoe_plugins.tuner.routing import ForwardContext


@dataclass(frozen=True)
class Case:
    """One shape to time.

    Attributes:
        name: What it is in the table.
        tokens: Tokens of a batch.
        hidden: Hidden size.
        intermediate: Intermediate size.
        experts: Experts, the base MLP included.
        topk: Experts per token.
        dtype: Of weights and activations.
        stage: 1 trains the experts and the router, 2 the router alone.
        rank: Of experts that are low-rank deltas; None for copies of the MLP.
    """

    name: str
    tokens: int = 4096
    hidden: int = 256
    intermediate: int = 1024
    experts: int = 6
    topk: int = 2
    dtype: str = "float32"
    stage: int = 1
    rank: int | None = None

    def but(self, name: str, **changes: int | str) -> Case:
        """Another case, with changes."""
        return replace(self, name=name, **changes)  # type: ignore[arg-type]

    def make_mlp(self) -> LlamaMLP:
        """The base MLP: random weights, frozen."""
        torch.manual_seed(0)
        config = LlamaConfig(hidden_size=self.hidden, intermediate_size=self.intermediate)
        with torch.device(DEVICE):
            return LlamaMLP(config).to(getattr(torch, self.dtype)).requires_grad_(False)

    def make_floor(self) -> LlamaMLP:
        """The MLP alone; as many passes as a token has experts are the least that a mixture of copies has to compute.

        In stage 1 all of its weights have gradients; those of a mixture's base have none. In stage 2 none have. Beside
        experts of low rank the MLP is frozen, and run once.
        """
        return self.make_mlp().requires_grad_(self.stage == 1 and self.rank is None)

    @property
    def floor_passes(self) -> int:
        """How often the floor runs."""
        return min(self.topk, self.experts) if self.rank is None else 1

    def make_input(self) -> torch.Tensor:
        """(1, tokens, hidden) of random numbers that ask for a gradient, as inside a model."""
        torch.manual_seed(1)
        states = torch.randn(1, self.tokens, self.hidden).to(DEVICE, getattr(torch, self.dtype))
        return states.requires_grad_(True)


def make_layer(case: Case) -> MoeLayer:
    """This package's layer, its router random."""
    layer = MoeLayer(case.make_mlp(), feed_forward_families()["gated"], 0, ForwardContext())
    config = MoeConfig(
        num_experts=case.experts, topk=case.topk, train_only_router=case.stage == 2, expert_rank=case.rank
    )
    torch.manual_seed(2)
    layer.update_layer("default", config.layer_plans(1)[0], config)
    layer.set_adapter("default")
    return layer


class PublishedLoop(nn.Module):
    """The published code's way, Mixtral's in transformers 4.36 to 4.45: a module per expert, and a mask for each.

    The router's weights are those of `layer`, so that both send the same tokens to the same experts.
    """

    def __init__(self, case: Case, layer: MoeLayer) -> None:
        super().__init__()
        self.topk = case.topk
        self.router = nn.Linear(case.hidden, case.experts, bias=False)
        self.router.weight = nn.Parameter(layer.moe_router["default"].weight.detach().clone())  # type: ignore[union-attr, operator]
        mlps = [case.make_mlp() for _ in range(case.experts)]
        for mlp in mlps[1:]:
            mlp.requires_grad_(case.stage == 1)
        self.experts = nn.ModuleList(mlps)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., hidden) in, the same shape out."""
        tokens = states.view(-1, states.shape[-1])
        weights, selected = torch.topk(F.softmax(self.router(tokens), dim=1, dtype=torch.float), self.topk, dim=-1)
        if self.topk > 1:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        weights = weights.to(tokens.dtype)
        mask = F.one_hot(selected, num_classes=len(self.experts)).permute(2, 1, 0)
        mixed = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            choice, token_index = torch.where(mask[index])
            current = tokens[None, token_index].reshape(-1, tokens.shape[-1])
            mixed.index_add_(0, token_index, expert(current) * weights[token_index, choice, None])
        return mixed.view_as(states)
