"""A folder as `neuronmoe specialise` leaves it, with the paper's counts for Greek and no model run."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from paper_analysis import COUNTS, TABLES

from neuronmoe_plugins.specialisation import ExpertScores, LanguageRouting, Specialisation
from neuronmoe_plugins.specialisation.specialisation import SCHEMA, SCORES

TABLE_10 = TABLES["table10_greek_high_ap"]
NEURONS: int = TABLE_10["units_per_layer_and_expert"]
# (layer, expert) -> high-AP neurons for Greek; expert 0 is the base, the paper's exp_0 is expert 1.
GREEK = {(layer, 0 if name == "base" else int(name[4:]) + 1): high for layer, name, high in TABLE_10["rows"]}
TOKENS = 12_000


def paper_experts(
    languages: Sequence[str] = ("en", "el"), english: Mapping[tuple[int, int], int] | None = None, **settings: Any
) -> Specialisation:
    """The mixtures of the paper's Table 10: Greek as counted there, other languages a little of it.

    Args:
        languages: All of them; each but Greek has a tenth of its neurons.
        english: Layer and expert -> how many sentences of English have a token there, if not 500.
        settings: Changes to the settings.
    """
    experts = []
    for (layer, expert), high in GREEK.items():
        seen = dict.fromkeys(languages, 500) | {"en": (english or {}).get((layer, expert), 500)}
        for name in languages:
            others = sum(seen.values()) - seen[name]
            own = None if min(seen[name], others) < 10 else high if name == "el" else high // 10
            experts.append(ExpertScores(layer, expert, name, NEURONS, own, seen[name], others))
    layers = sorted({layer for layer, _ in GREEK})
    routing = [_routing(layer, name, sum(key[0] == layer for key in GREEK)) for layer in layers for name in languages]
    defaults = {
        "model": "meta-llama/Llama-3.2-3B", "adapter": "run/stage1", "model_type": "llama", "samples": 500, "seed": 42,
        "num_layers": len(COUNTS["en"]), "languages": list(languages), "threshold": 0.9, "missing": "drop",
        "min_sentences": 10, "dtype": "float32", "device": "cpu",
    }  # fmt: skip
    return Specialisation(defaults | settings, experts, routing)


def save_experts(folder: Path, specialisation: Specialisation) -> None:
    """Write the record beside a table without rows, which the report does not read."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(SCHEMA.empty_table(), folder / SCORES)
    specialisation.save(folder)


def _routing(layer: int, language: str, num_experts: int) -> LanguageRouting:
    """Two choices per token: English prefers the base, others the new experts."""
    generator = random.Random(f"{layer} {language}")
    pairs = list(combinations(range(num_experts), 2))
    weights = [generator.random() ** 3 * (3 if language == "en" and not pair[0] else 1) + 1e-3 for pair in pairs]
    numbers = [int(TOKENS * weight / sum(weights)) for weight in weights]
    numbers[0] += TOKENS - sum(numbers)
    chosen = [
        sum(number for pair, number in zip(pairs, numbers, strict=True) if expert in pair)
        for expert in range(num_experts)
    ]
    mean_weights = [round(2 / 3 - 0.1 * expert, 2) if number else None for expert, number in enumerate(chosen)]
    keys = {f"{one},{other}": number for (one, other), number in zip(pairs, numbers, strict=True)}
    return LanguageRouting(layer, language, TOKENS, chosen, mean_weights, 0.8 * math.log(num_experts), keys)
