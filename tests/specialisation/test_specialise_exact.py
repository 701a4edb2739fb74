"""Activations, scores and routing against a slow implementation that follows the paper word by word."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from neuronmoe_plugins.specialisation import Specialisation, SpecialiseOptions, specialise
from neuronmoe_plugins.specialisation.mixtures import projection_of
from specialisation.by_definition import ByDefinition, by_definition
from specialisation.extending import EXPERTS, load_extended, observed, scores_in, tokens_of

UNITS = {"gate_proj": 48, "up_proj": 48, "down_proj": 32}
LAYERS = {layer: number for layer, number in enumerate(EXPERTS) if number > 1}


def plain_average_precision(own: list[bool], values: np.ndarray) -> float:
    """Precision at every threshold, weighted by the recall that it adds."""
    above = values >= np.unique(values)[::-1, None]
    hits = (above & np.array(own)).sum(axis=1)
    return float((np.diff(hits, prepend=0) / sum(own) * hits / above.sum(axis=1)).sum())


@pytest.fixture(scope="module", params=[1, 2], ids=["top-1", "top-2"])
def topk(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def token_ids(tiny_model_dir: Path, texts: dict[str, list[str]]) -> list[list[int]]:
    return tokens_of(tiny_model_dir, [text for lines in texts.values() for text in lines])


@pytest.fixture(scope="module")
def labels(texts: dict[str, list[str]]) -> list[str]:
    return [language for language, lines in texts.items() for _ in lines]


@pytest.fixture(scope="module")
def extended(options: SpecialiseOptions, adapters: dict[int, Path], topk: int) -> Any:
    return load_extended(options.model, adapters[topk])


@pytest.fixture(scope="module")
def expected(extended: Any, token_ids: list[list[int]], topk: int) -> ByDefinition:
    return by_definition(extended, token_ids, topk)


@pytest.fixture(scope="module")
def run(options: SpecialiseOptions, adapters: dict[int, Path], topk: int, tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("exact") / "out"
    return specialise(replace(options, adapter=str(adapters[topk]), output=folder)), folder


def test_activations_are_means_over_the_tokens_that_chose_the_expert(
    extended: Any, token_ids: list[list[int]], expected: ByDefinition
) -> None:
    found = observed(extended, token_ids, batch_size=1)
    assert len(found) == sum(3 * number + 1 for number in LAYERS.values())
    missing = 0
    for layer, number in LAYERS.items():
        for expert in range(number):
            for projection, units in UNITS.items():
                values = found[projection_of(layer, expert, projection)]
                means = expected.means[layer, expert, projection]
                wanted = np.full((len(token_ids), units), np.nan)
                for sentence, mean in means.items():
                    wanted[sentence] = mean
                missing += len(token_ids) - len(means)
                assert values.dtype == np.float32
                np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=1e-6)
    assert missing > 0  # otherwise sentences without a token were not tested


@pytest.mark.parametrize("missing", ["drop", "zero"])
def test_neurons_are_those_of_scikit_learn(
    options: SpecialiseOptions,
    adapters: dict[int, Path],
    extended: Any,
    token_ids: list[list[int]],
    expected: ByDefinition,
    labels: list[str],
    topk: int,
    missing: str,
    tmp_path: Path,
    without_pictures: None,
) -> None:
    given = replace(options, adapter=str(adapters[topk]), output=tmp_path / "out", missing=missing, threshold=0.8)
    found = {(row.layer, row.expert, row.language): row.high_ap for row in specialise(given).experts}
    measured = {key: high for key, high in found.items() if high is not None}
    scores, pooled = scores_in(tmp_path / "out"), observed(extended, token_ids)
    wanted = dict.fromkeys(measured, 0)
    for (layer, expert, projection), means in expected.means.items():
        sentences = sorted(means) if missing == "drop" else range(len(labels))
        slow = np.array([means.get(sentence, np.zeros(UNITS[projection])) for sentence in sentences])
        # What the paper's means have alike, as a <s> alone, differs in its last bits from batch to batch.
        exact = np.nan_to_num(pooled[projection_of(layer, expert, projection)][list(sentences)])
        for language in ("en", "el", "tr"):
            if (layer, expert, language) not in measured:
                continue
            own = [labels[sentence] == language for sentence in sentences]
            got = [scores.pop((layer, expert, projection, unit, language)) for unit in range(UNITS[projection])]
            by_sklearn = [average_precision_score(own, unit) for unit in exact.T[::6].astype(np.float64)]
            np.testing.assert_allclose(got[::6], by_sklearn, rtol=0, atol=1e-9)  # the rest would take seconds
            np.testing.assert_allclose(got, [plain_average_precision(own, unit) for unit in exact.T], rtol=0, atol=1e-9)
            wanted[layer, expert, language] += sum(plain_average_precision(own, unit) >= 0.8 for unit in slow.T)
    assert not scores
    assert measured == wanted
    assert sum(measured.values()) > 20


def test_rows_say_how_many_sentences_have_a_token_there(
    run: tuple[Specialisation, Path], expected: ByDefinition, labels: list[str]
) -> None:
    rows = run[0].experts
    order = [(layer, i, language) for layer, n in LAYERS.items() for i in range(n) for language in ("en", "el", "tr")]
    assert [(row.layer, row.expert, row.language) for row in rows] == order
    for row in rows:
        seen = expected.means[row.layer, row.expert, "up_proj"]
        own = sum(labels[sentence] == row.language for sentence in seen)
        assert (row.neurons, row.sentences, row.other_sentences) == (128, own, len(seen) - own)
        assert row.ratio == (None if row.high_ap is None else row.high_ap / 128)


def test_routing_is_counted_token_by_token(
    run: tuple[Specialisation, Path], expected: ByDefinition, labels: list[str], topk: int
) -> None:
    rows = run[0].routing
    assert [(row.layer, row.language) for row in rows] == [(i, name) for i in LAYERS for name in ("en", "el", "tr")]
    for row in rows:
        number = LAYERS[row.layer]
        choices = [choice for choice in expected.choices[row.layer] if labels[choice.sentence] == row.language]
        tokens = Counter(expert for choice in choices for expert in choice.experts)
        pairs = Counter(tuple(sorted(choice.experts)) for choice in choices if topk == 2)
        assert row.tokens == len(choices)
        assert list(row.expert_tokens) == [tokens[expert] for expert in range(number)]
        assert row.pairs == {f"{i},{j}": pairs[i, j] for i, j in combinations(range(number), 2)}
        entropies = [-sum(p * np.log(p) for p in choice.probabilities) for choice in choices]
        assert row.entropy == pytest.approx(np.mean(entropies), abs=1e-6)
        for expert, weight in enumerate(row.mean_weights):
            own = [dict(zip(c.experts, c.weights, strict=True))[expert] for c in choices if expert in c.experts]
            assert weight == (pytest.approx(np.mean(own), abs=1e-6) if own else None)
