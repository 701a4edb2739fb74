"""Models of the architecture `neuronmoe`: transformers' class of the base, with mixtures in place of some MLPs.

Shapes: hidden states are (batch, sequence, hidden), tokens (batch x sequence, hidden); stacked weights
(experts, out, in), a router's (experts, hidden).
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.feed_forward import find_feed_forwards
from neuronmoe_plugins.feed_forward.family import FUSED_GATED, GATED, FeedForwardFamily
from neuronmoe_plugins.tuner.routing import route

# What a list of tensors names before the rest is counted.
NAMED = 3


def stacked_parts(family: FeedForwardFamily) -> dict[str, tuple[str, ...]]:
    """Name of a stack of experts' weights -> the MLP's linear layers whose outputs are beside each other in it.

    Gate and up are one, as in the stacked experts of transformers 5 and of engines.
    """
    if family == GATED:
        return {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
    return {name: (name,) for name in family.projections}


class Router(nn.Module):
    """A mixture's router, which is no `nn.Linear`, so that nothing quantises it.

    Args:
        num_experts: How many there are.
        hidden: Of the hidden states.
    """

    def __init__(self, num_experts: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden))
        # Its result is not used: transformers 4 has it do nothing and return nothing where weights are loaded.
        nn.init.xavier_normal_(self.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(tokens, num_experts), in the router's dtype, of (tokens, hidden)."""
        return F.linear(tokens.to(self.weight.dtype), self.weight)


class StackedExperts(nn.Module):
    """All experts of a layer in one parameter per linear layer, the base's MLP first.

    Args:
        mlp: The base's, whose shapes and activation they have.
        family: What kind it is.
        num_experts: How many there are.
    """

    def __init__(self, mlp: nn.Module, family: FeedForwardFamily, num_experts: int) -> None:
        super().__init__()
        self.family = FUSED_GATED if family == GATED else family
        self.act_fn = getattr(mlp, family.activation)
        for name, parts in stacked_parts(family).items():
            linears: list[nn.Linear] = [getattr(mlp, part) for part in parts]
            out, inner = sum(linear.out_features for linear in linears), linears[0].in_features
            weight = torch.empty(num_experts, out, inner).uniform_(-(inner**-0.5), inner**-0.5)
            self.register_parameter(name, nn.Parameter(weight))
            if linears[0].bias is not None:
                self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(num_experts, out)))

    def forward(self, tokens: torch.Tensor, weights: torch.Tensor, selected_experts: torch.Tensor) -> torch.Tensor:
        """The experts' outputs, mixed.

        Args:
            tokens: (tokens, hidden).
            weights: (tokens, topk) float32.
            selected_experts: (tokens, topk) int64.

        Returns:
            (tokens, hidden), in the dtype of the tokens.
        """
        mixed = torch.zeros_like(tokens)
        for expert in selected_experts.unique().tolist():
            token_index, choice = torch.where(selected_experts == expert)
            output = self.family.forward(tokens[token_index], partial(self._project, expert), self.act_fn)
            factor = weights[token_index, choice, None].to(tokens.dtype)
            mixed.index_add_(0, token_index, output.to(tokens.dtype) * factor)
        return mixed

    def _project(self, expert: int, name: str, inputs: torch.Tensor) -> torch.Tensor:
        weight, bias = getattr(self, name)[expert], getattr(self, f"{name}_bias", None)
        return F.linear(inputs.to(weight.dtype), weight, None if bias is None else bias[expert])


class Mixture(nn.Module):
    """A mixture in place of an MLP: the softmax over all experts, the top-k of it, renormalised unless k is 1.

    Args:
        mlp: The base's.
        family: What kind it is.
        num_experts: How many there are, the base's included.
        topk: How many a token uses, at most all.
    """

    def __init__(self, mlp: nn.Module, family: FeedForwardFamily, num_experts: int, topk: int) -> None:
        super().__init__()
        self.topk = topk
        self.gate = Router(num_experts, getattr(mlp, family.projections[0]).in_features)
        self.experts = StackedExperts(mlp, family, num_experts)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., hidden) in, the same shape and dtype out."""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        mixed: torch.Tensor = self.experts(tokens, *route(self.gate(tokens), self.topk))
        return mixed.view_as(hidden_states)


class MixturesInBase:
    """What a model of `neuronmoe` has in front of its base's class."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config.text_config, *args, **kwargs)  # type: ignore[call-arg]
        self.config = config
        mlps = find_feed_forwards(self).values()  # type: ignore[arg-type]
        for found, count in zip(mlps, config.experts_per_layer, strict=True):
            if count > 1:
                parent, _, name = found.name.rpartition(".")
                block: Any = self.get_submodule(parent)  # type: ignore[attr-defined]
                setattr(block, name, Mixture(getattr(block, name), found.family, count, config.num_experts_per_tok))

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
        """As that of the base's class, which would give random weights to what the files lack, and only warn.

        Raises:
            UserError: if they lack tensors of the model, or have others.
        """
        with_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        for key, verb in (("missing_keys", "lack"), ("unexpected_keys", "have, beside those of their model,")):
            if wrong := sorted(info[key]):
                others = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
                raise UserError(
                    f"{name} is damaged: its weights {verb} {', '.join(wrong[:NAMED])}{others}; export it again"
                )
        return (model, info) if with_info else model


def model_class(config: Any, name: str) -> Any:
    """The class of a model.

    Args:
        config: Its configuration, one of `neuronmoe`.
        name: Of the class.

    Raises:
        UserError: if transformers has no causal language model of its base's kind.
    """
    try:
        base = MODEL_FOR_CAUSAL_LM_MAPPING[type(config.text_config)]
    except KeyError as error:
        raise UserError(
            f"text_config: transformers has no causal language model of the kind {config.text_config.model_type}"
        ) from error
    kind: Any = type(config)
    return _class_on(base, kind, name)


@cache
def _class_on(base: type, config_class: type, name: str) -> type:
    # transformers reads the source of a class's module to find out what its attention can do: that is the base's.
    own = {"__module__": base.__module__, "__doc__": MixturesInBase.__doc__, "config_class": config_class}
    return type(name, (MixturesInBase, base), own)
