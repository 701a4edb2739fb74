"""Experts that are the base MLP with a low-rank delta on each of its linear layers: W_e = W + scaling B_e A_e.

The base's products are computed once per token, however many experts it has: those of the hidden states before the
tokens are sorted by expert, and the last one, which is linear, after the experts' activations are mixed. What an expert
adds is two thin products per layer (LoRA, arXiv 2106.09685, of one expert each).
"""

from __future__ import annotations

import torch

from neuronmoe_plugins.tuner.experts.deltas import Choices, sort_choices
from neuronmoe_plugins.tuner.experts.stacks import DOWN, UP, Experts, LayerExperts, run_base_projection


def run_low_rank(
    tokens: torch.Tensor,
    weights: torch.Tensor,
    selected_experts: torch.Tensor,
    experts: LayerExperts,
    grouped: bool,
) -> torch.Tensor:
    """Run the base's linear layers once per token, and add each choice's delta.

    Args:
        tokens: (tokens, hidden).
        weights: (tokens, topk).
        selected_experts: (tokens, topk) int64; an index beyond the experts is a choice that is not used.
        experts: The layer's, all but the base of low rank.
        grouped: Whether the deltas are computed by grouped products that do not wait for the device.

    Returns:
        (tokens, hidden) in the dtype of `tokens`.
    """
    choices = sort_choices(weights, selected_experts, experts, grouped)
    rows_of, factors, deltas = choices
    states = rows_of.spread(tokens)
    last = experts.family.projections[-1] if experts.ends_in_projection else None

    def linear(name: str, inputs: torch.Tensor) -> torch.Tensor:
        if name == last:
            return _mix(name, inputs, choices, experts)
        if inputs is states:
            rows = rows_of.spread(run_base_projection(experts.base_layer, name, tokens))
        else:
            rows = run_base_projection(experts.base_layer, name, inputs)
        return deltas.add(name, deltas.low(name, inputs), rows)

    output: torch.Tensor = experts.family.forward(states, linear, experts.act_fn)
    if last is None:
        output = rows_of.collect(output * factors.to(output.dtype))
    return output.to(tokens.dtype)


def _mix(name: str, inputs: torch.Tensor, choices: Choices, experts: LayerExperts) -> torch.Tensor:
    """The last projection of activations (rows, in), weighted and added up to (tokens, hidden)."""
    rows, factors, deltas = choices
    weighted = inputs * factors.to(inputs.dtype)
    output = run_base_projection(experts.base_layer, name, rows.collect(weighted))
    bias = getattr(experts.base_layer, name).bias
    if bias is not None:
        # It was added once, where each choice would have added its weight's share.
        output = output + (bias * (rows.collect(factors) - 1).to(bias.dtype)).to(output.dtype)
    added = deltas.high(name, deltas.low(name, weighted))
    return output.to(added.dtype) + rows.collect(deltas.of_all(added))


class AddedDeltas:
    """What tokens' experts add to the outputs of the base's linear layers: sum over e of w_e scaling B_e A_e x.

    Args:
        weights: (tokens, topk).
        selected_experts: (tokens, topk) int64; an index beyond the experts is a choice that is not used.
        experts: All but the base of low rank.
        grouped: Whether the deltas are computed by grouped products that do not wait for the device.
    """

    def __init__(self, weights: torch.Tensor, selected_experts: torch.Tensor, experts: Experts, grouped: bool) -> None:
        choices = sort_choices(weights, selected_experts, experts, grouped)
        self._deltas = choices.deltas
        self._token_index = self._deltas.own(choices.rows.token_index)
        self._rows = self._factors = self._deltas.own(choices.factors)
        self._inputs: torch.Tensor | None = None

    def __call__(self, name: str, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Add them to the output (..., out) of a linear layer for inputs (..., in), all tokens in their order."""
        if inputs is not self._inputs:  # query, key and value have the same
            self._inputs = inputs
            self._rows = inputs.reshape(-1, inputs.shape[-1]).index_select(0, self._token_index)
        added = self._deltas.of_own(name, self._rows, self._factors)
        rows = output.reshape(-1, output.shape[-1]).to(torch.promote_types(output.dtype, added.dtype))
        return rows.index_add(0, self._token_index, added.to(rows.dtype)).to(output.dtype).view_as(output)


class AllDeltas:
    """The same by all experts on all tokens, those that a token did not choose with weight 0: shapes are known before.

    The arguments are those of :class:`AddedDeltas`.
    """

    def __init__(self, weights: torch.Tensor, selected_experts: torch.Tensor, experts: Experts) -> None:
        # One more for choices that are not used.
        factors = weights.new_zeros(len(weights), len(experts) + 1).scatter(1, selected_experts, weights)
        self._factors = factors[:, 1:-1].split([len(stack) for stack in experts.stacks], dim=1)
        self._stacks = experts.stacks

    def __call__(self, name: str, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Add them to the output (..., out) of a linear layer for inputs (..., in), all tokens in their order."""
        rows = output
        for stack, factors in zip(self._stacks, self._factors, strict=True):
            down, up = stack.weights[f"{name}{DOWN}"], stack.weights[f"{name}{UP}"]
            low = torch.einsum("ti,eri->ter", inputs.reshape(-1, inputs.shape[-1]).to(down.dtype), down)
            low = low * (stack.scaling * factors).to(low.dtype).unsqueeze(-1)
            rows = rows + torch.einsum("ter,eor->to", low, up).view(*output.shape)
        return rows.to(output.dtype)
