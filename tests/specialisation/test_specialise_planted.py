"""A model made by hand: exactly the planted neurons are found, and exactly the planned routing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuronmoe_plugins.corpora import parse_corpus_specs
from neuronmoe_plugins.specialisation import Specialisation, SpecialiseOptions, specialise
from neuronmoe_plugins.specialisation.mixtures import projection_of
from specialisation.extending import load_extended, observed, scores_in, tokens_of
from specialisation.planting import MARGIN, SIGNAL, save_planted_adapter, save_planted_model

# English: 5 letters, a blank and a full stop; Greek: 4 letters; each and 2 digits.
TEXTS = {
    "en": [f"ab{chr(97 + n)}de {10 + n}." for n in range(12)],
    "el": [f"αβ{chr(0x3B1 + n)}δ{10 + n}" for n in range(12)],
}
PLANTED = {("gate_proj", 5, "el"), ("up_proj", 5, "el"), ("up_proj", 7, "en"), ("down_proj", 9, "el")}


@pytest.fixture(scope="module")
def planted(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> SpecialiseOptions:
    folder = tmp_path_factory.mktemp("planted")
    save_planted_model(folder / "model", tiny_model_dir)
    save_planted_adapter(folder / "model", folder / "adapter")
    for language, lines in TEXTS.items():
        (folder / f"{language}.txt").write_text("\n".join(lines), encoding="utf-8")
    specs = parse_corpus_specs([f"{language}={folder / language}.txt" for language in TEXTS])
    names = {"model": str(folder / "model"), "adapter": str(folder / "adapter"), "output": folder / "out"}
    return SpecialiseOptions(**names, corpora=specs, samples=12, device="cpu")


@pytest.fixture(scope="module")
def found(planted: SpecialiseOptions) -> Specialisation:
    return specialise(planted)


def test_exactly_the_planted_neurons_are_found(planted: SpecialiseOptions, found: Specialisation) -> None:
    scores = scores_in(planted.output)
    high = {key: score for key, score in scores.items() if score >= 0.9}
    assert high == {(0, 1, *place): 1.0 for place in PLANTED}
    # All others give 0 for every sentence.
    assert {score for key, score in scores.items() if key not in high and (*key[2:4],) not in places()} == {0.5}
    counts = {(row.layer, row.expert, row.language): row.high_ap for row in found.experts}
    assert counts == {
        (0, 0, "en"): 0, (0, 0, "el"): 0,
        (0, 1, "en"): 1, (0, 1, "el"): 3,
        (0, 2, "en"): None, (0, 2, "el"): None,
        (1, 0, "en"): 0, (1, 0, "el"): 0,
        (1, 1, "en"): None, (1, 1, "el"): None,
    }  # fmt: skip
    assert next(row.ratio for row in found.of("el") if row.expert == 1) == 3 / (12 + 12 + 16)


def places() -> set[tuple[str, int]]:
    return {(projection, unit) for projection, unit, _ in PLANTED}


def test_routing_is_the_planned_one(found: Specialisation) -> None:
    first, greek, second, _ = found.routing
    assert [(row.layer, row.language) for row in found.routing] == [(0, "en"), (0, "el"), (1, "en"), (1, "el")]
    assert (first.tokens, list(first.expert_tokens)) == (120, [12, 24, 84])
    assert (greek.tokens, list(greek.expert_tokens)) == (12 * 11, [12, 12 * 10, 0])  # two bytes per Greek letter
    probability, rest = math.exp(MARGIN) / (math.exp(MARGIN) + 2), 1 / (math.exp(MARGIN) + 2)
    assert list(first.mean_weights) == pytest.approx([probability] * 3, abs=1e-6)
    assert list(greek.mean_weights) == [*(pytest.approx(probability, abs=1e-6),) * 2, None]
    entropy = -(probability * math.log(probability) + 2 * rest * math.log(rest))
    assert [first.entropy, greek.entropy] == pytest.approx([entropy] * 2, abs=1e-6)
    assert list(second.expert_tokens) == [120, 0]
    assert second.mean_weights[1] is None
    assert all(count == 0 for row in found.routing for count in row.pairs.values())


def test_activations_are_those_planned(planted: SpecialiseOptions) -> None:
    model = load_extended(planted.model, planted.adapter)
    pooled: dict[Any, Any] = observed(model, tokens_of(planted.model, [text for own in TEXTS.values() for text in own]))
    share = 8 / 10  # of the tokens at the expert that are Greek, in a Greek sentence
    activated = SIGNAL / (1 + math.exp(-SIGNAL)) * SIGNAL
    for projection, unit, value in (
        ("gate_proj", 5, SIGNAL),
        ("up_proj", 5, SIGNAL),
        ("up_proj", 7, -SIGNAL),
        ("down_proj", 9, activated),
    ):
        values = pooled[projection_of(0, 1, projection)][:, unit]
        np.testing.assert_allclose(values, [0.0] * 12 + [share * value] * 12, rtol=1e-6)
    assert np.isnan(pooled[projection_of(0, 2, "up_proj")][12:]).all()
    assert not pooled[projection_of(0, 2, "up_proj")][:12].any()


def test_threshold_itself_is_high(planted: SpecialiseOptions, tmp_path: Path, without_pictures: None) -> None:
    found = specialise(replace(planted, output=tmp_path / "out", threshold=1.0))
    assert [row.high_ap for row in found.experts if (row.layer, row.expert) == (0, 1)] == [1, 3]


def test_zero_measures_what_only_one_language_uses(planted: SpecialiseOptions, tmp_path: Path) -> None:
    found = specialise(replace(planted, output=tmp_path / "out", missing="zero"))
    counts = {(row.layer, row.expert, row.language): row.high_ap for row in found.experts}
    assert counts[0, 2, "en"] == 0
    assert counts[0, 2, "el"] is None
    assert counts[0, 1, "el"] == 3
    assert (counts[1, 1, "en"], counts[1, 1, "el"]) == (None, None)
