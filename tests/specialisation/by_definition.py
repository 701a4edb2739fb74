"""Section 6.1 of the paper word by word: one sentence, one token and one expert at a time, in float64, no padding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from neuronmoe_plugins.tuner import MoeLayer

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@dataclass
class Choice:
    """One token in one layer: its experts, best first, their weights, and the router's probabilities."""

    sentence: int
    experts: list[int]
    weights: list[float]
    probabilities: np.ndarray


@dataclass
class ByDefinition:
    """Layer -> choices of every token; layer, expert and projection -> sentence -> mean activation (equation 5)."""

    choices: dict[int, list[Choice]] = field(default_factory=lambda: defaultdict(list))
    means: dict[tuple[int, int, str], dict[int, np.ndarray]] = field(default_factory=lambda: defaultdict(dict))


def by_definition(model: Any, token_ids: Sequence[Sequence[int]], topk: int) -> ByDefinition:
    """Run each sentence by itself, and each of its tokens through the experts that it chose."""
    found = ByDefinition()
    mixtures = {module.layer_index: module for module in model.modules() if isinstance(module, MoeLayer)}
    mixtures = {layer: mixture for layer, mixture in mixtures.items() if mixture.plans}
    for sentence, ids in enumerate(token_ids):
        for layer, states in _inputs(model, mixtures, ids).items():
            router = _float64(mixtures[layer].moe_router["default"].weight)
            experts = _experts(mixtures[layer])
            activations: dict[tuple[int, str], list[np.ndarray]] = defaultdict(list)
            for state in states:
                choice = _choose(sentence, router @ state, topk)
                found.choices[layer].append(choice)
                for expert in choice.experts:
                    for name, values in _run(experts[expert], state).items():
                        activations[expert, name].append(values)
            for (expert, name), rows in activations.items():
                found.means[layer, expert, name][sentence] = sum(rows) / len(rows)
    return found


def _inputs(model: Any, mixtures: dict[int, MoeLayer], ids: Sequence[int]) -> dict[int, np.ndarray]:
    """Layer -> what enters its mixture, (tokens, hidden)."""
    states: dict[int, np.ndarray] = {}
    hooks = [
        mixture.register_forward_pre_hook(lambda _, args, layer=layer: states.update({layer: _float64(args[0][0])}))
        for layer, mixture in mixtures.items()
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([list(ids)]))
    for hook in hooks:
        hook.remove()
    return states


def _experts(mixture: MoeLayer) -> list[dict[str, np.ndarray]]:
    """The weights of the base MLP, then those of the new experts."""
    base = {name: _float64(getattr(mixture.base_layer, name).weight) for name in PROJECTIONS}
    stacks = {name: _float64(getattr(mixture, f"moe_{name}")["default"]) for name in PROJECTIONS}
    return [base, *({name: stacks[name][i] for name in PROJECTIONS} for i in range(len(stacks["gate_proj"])))]


def _choose(sentence: int, logits: np.ndarray, topk: int) -> Choice:
    probabilities = np.exp(logits) / np.exp(logits).sum()
    experts = sorted(range(len(logits)), key=lambda expert: -probabilities[expert])[:topk]
    weights = [float(probabilities[expert]) for expert in experts]
    if topk > 1:
        weights = [weight / sum(weights) for weight in weights]
    return Choice(sentence, experts, weights, probabilities)


def _run(weights: dict[str, np.ndarray], state: np.ndarray) -> dict[str, np.ndarray]:
    gate, up = weights["gate_proj"] @ state, weights["up_proj"] @ state
    return {"gate_proj": gate, "up_proj": up, "down_proj": weights["down_proj"] @ (gate / (1 + np.exp(-gate)) * up)}


def _float64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()
