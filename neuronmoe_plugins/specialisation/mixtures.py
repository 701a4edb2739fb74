"""Observes a model's mixtures: each expert's activations on the tokens that chose it, and how they were routed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.arrays import FloatArray, IntArray, ModuleKey
from neuronmoe_plugins.neurons.pooling import take_input
from neuronmoe_plugins.specialisation.specialisation import LanguageRouting

if TYPE_CHECKING:
    from neuronmoe_plugins.tuner import MoeLayer

ROUTING = "routing"


def projection_of(layer: int, expert: int, projection: str) -> ModuleKey:
    """Under which key an expert's projection is observed; expert 0 is the original MLP."""
    return layer, f"expert {expert} {projection}"


def places(mixtures: Mapping[int, MoeLayer]) -> dict[ModuleKey, int]:
    """What is observed, and how many values each has per sentence: every expert's projections, and the routing."""
    found: dict[ModuleKey, int] = {}
    for layer, mixture in mixtures.items():
        num_experts = len(mixture.expert_projections())
        for expert in range(num_experts):
            for name in mixture.family.projections:
                found[projection_of(layer, expert, name)] = _units(mixture, name)
        found[layer, ROUTING] = routing_size(num_experts)
    return found


def _units(mixture: MoeLayer, projection: str) -> int:
    linear: Any = getattr(mixture.get_base_layer(), projection)
    return int(linear.out_features)


def routing_size(num_experts: int) -> int:
    """Numbers that describe a sentence's routing: tokens and weights per expert, pairs, entropy, tokens."""
    return 2 * num_experts + num_experts * (num_experts - 1) // 2 + 2


class ExpertObserver:
    """Pools, over the real tokens of each sentence that chose an expert, its activations (paper, equation 5).

    Args:
        mixtures: By decoder layer.

    Attributes:
        pooled: What the last batch gave, float32 (batch, units); NaN where no token of a sentence chose the expert.
            Under the name `routing`, sums over a sentence's tokens: how often each expert was chosen, its weights, how
            often each pair was chosen together, the entropy of the router's probabilities in nats, and the tokens.
    """

    def __init__(self, mixtures: Mapping[int, MoeLayer]) -> None:
        self._mixtures = mixtures
        self._mask = torch.empty(0)
        self.pooled: dict[ModuleKey, Tensor] = {}

    def start_batch(self, attention_mask: Tensor) -> None:
        """Take the mask (batch, tokens) of the batch that comes next."""
        self._mask = attention_mask
        self.pooled = {}

    def finish_batch(self) -> None:
        """Raise `UserError` if a mixture was not run."""
        for layer in self._mixtures:
            if (layer, ROUTING) not in self.pooled:
                raise UserError(f"the mixture in layer {layer} has no part in a forward pass")

    def observe(self, layer: int, hidden_states: Tensor) -> None:
        """Take the input (batch, tokens, hidden) of a layer's mixture."""
        mixture = self._mixtures[layer]
        routed = mixture.route_tokens(hidden_states)
        assert routed is not None, "the adapter is active"
        real = self._mask.bool().flatten().to(hidden_states.device)
        router_logits, weights, selected_experts = (tensor[real] for tensor in routed)
        sentences = torch.arange(len(self._mask), device=real.device).repeat_interleave(self._mask.shape[1])[real]
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])[real]
        chosen = torch.zeros(len(tokens), router_logits.shape[-1] + 1, device=real.device)
        chosen.scatter_(1, selected_experts, 1.0)  # the last column is no expert
        chosen = chosen[:, :-1]
        activation = getattr(mixture.get_base_layer(), mixture.family.activation)
        for expert, projection in enumerate(mixture.expert_projections()):
            own = chosen[:, expert].nonzero().squeeze(1)
            counts = torch.bincount(sentences[own], minlength=len(self._mask)).unsqueeze(1)
            outputs = _projections(mixture, projection, activation, tokens[own])
            for name in mixture.family.projections:
                sums = _sum_per_sentence(outputs[name], sentences[own], len(self._mask))
                # NaN, 0 / 0, where a sentence has no token.
                self.pooled[projection_of(layer, expert, name)] = sums / counts
        values = _routing_values(router_logits, weights, selected_experts, chosen)
        self.pooled[layer, ROUTING] = _sum_per_sentence(values, sentences, len(self._mask))


def _projections(
    mixture: MoeLayer, projection: Any, activation: Callable[[Tensor], Tensor], tokens: Tensor
) -> dict[str, Tensor]:
    """What each of an expert's linear layers gives for its tokens, (tokens, units)."""
    outputs: dict[str, Tensor] = {}

    def linear(name: str, inputs: Tensor) -> Tensor:
        outputs[name] = projection(name, inputs)
        return outputs[name]

    if len(tokens):
        mixture.family.forward(tokens, linear, activation)
    else:  # quantised kernels need not work without rows
        outputs = {name: tokens.new_empty(0, _units(mixture, name)) for name in mixture.family.projections}
    return outputs


def _sum_per_sentence(values: Tensor, sentences: Tensor, num_sentences: int) -> Tensor:
    sums = torch.zeros(num_sentences, values.shape[1], device=values.device)
    return sums.index_add_(0, sentences, values.float())


def _routing_values(router_logits: Tensor, weights: Tensor, selected_experts: Tensor, chosen: Tensor) -> Tensor:
    """Per token what `routing_size` counts, (tokens, values)."""
    num_experts = router_logits.shape[-1]
    weight = torch.zeros(len(weights), num_experts + 1, device=weights.device)
    weight = weight.scatter_(1, selected_experts, weights.float())[:, :-1]
    pairs = [chosen[:, one] * chosen[:, other] for one, other in combinations(range(num_experts), 2)]
    log_probabilities = router_logits.float().log_softmax(-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    return torch.cat([chosen, weight, torch.stack([*pairs, entropy, torch.ones_like(entropy)], dim=1)], dim=1)


@contextmanager
def observing(mixtures: Mapping[int, MoeLayer]) -> Iterator[ExpertObserver]:
    """Hook the mixtures; the hooks are gone when the block ends."""
    observer = ExpertObserver(mixtures)
    with ExitStack() as hooks:
        for layer, mixture in mixtures.items():
            hooks.callback(take_input(mixture, partial(observer.observe, layer)).remove)
        yield observer


def language_routing(
    layer: int, values: FloatArray, num_experts: int, labels: IntArray, languages: list[str]
) -> list[LanguageRouting]:
    """Add up what `ExpertObserver` gives of one layer.

    Args:
        layer: Index of the decoder layer.
        values: Per sentence, float32 (sentences, `routing_size(num_experts)`).
        num_experts: Experts of the layer, the base included.
        labels: Language index of every sentence, int64 (sentences,).
        languages: Their names.
    """
    rows = []
    for index, language in enumerate(languages):
        sums = values[labels == index].astype(np.float64).sum(axis=0)
        counts, weights, rest = np.split(sums, [num_experts, 2 * num_experts])
        *pairs, entropy, tokens = rest.tolist()
        keys = (f"{one},{other}" for one, other in combinations(range(num_experts), 2))
        rows.append(
            LanguageRouting(
                layer,
                language,
                round(tokens),
                [round(count) for count in counts],
                [float(weight / count) if count else None for weight, count in zip(weights, counts, strict=True)],
                entropy / tokens,
                {key: round(count) for key, count in zip(keys, pairs, strict=True)},
            )
        )
    return rows
