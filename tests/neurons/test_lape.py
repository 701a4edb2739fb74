"""LAPE against its formula and thresholds, on numbers small enough to follow, and on planted neurons."""

from __future__ import annotations

import numpy as np
import pytest

from neuronmoe_plugins.neurons.lape import LAPE, activation_probability, entropy, select_by_entropy
from neuronmoe_plugins.neurons.metrics import Samples


def test_probability_is_over_tokens_not_sentences() -> None:
    samples = Samples(np.array([0, 0, 1]), 2, np.array([10, 30, 5]))
    counts = np.array([[10, 0], [0, 15], [5, 1]], dtype=np.float32)
    np.testing.assert_allclose(activation_probability(counts, samples), [[10 / 40, 15 / 40], [1, 1 / 5]])


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([0.3, 0.3, 0.3], np.log(3)),
        ([0.7, 0.0, 0.0], 0.0),
        ([0.0, 0.0, 0.0], 0.0),
        ([0.6, 0.2, 0.2], -(0.6 * np.log(0.6) + 0.4 * np.log(0.2))),
        ([0.06, 0.02, 0.02], -(0.6 * np.log(0.6) + 0.4 * np.log(0.2))),
    ],
)
def test_entropy(probabilities: list[float], expected: float) -> None:
    np.testing.assert_allclose(entropy(np.array(probabilities)[:, None]), [expected], atol=1e-12)


def planted() -> dict[tuple[int, str], np.ndarray]:
    """Four modules of 250 units, all alike but for ten."""
    generator = np.random.default_rng(0)
    scores = {(layer, "mlp.act_fn"): generator.uniform(0.2, 0.3, (3, 250)) for layer in range(4)}
    scores[0, "mlp.act_fn"][:, 7] = [0.9, 0.01, 0.01]
    scores[2, "mlp.act_fn"][:, 100] = [0.01, 0.02, 0.8]
    scores[3, "mlp.act_fn"][:, 0] = [0.0, 0.85, 0.85]
    # More specific than all, but active too seldom to be above the 95th percentile anywhere.
    scores[1, "mlp.act_fn"][:, 20:28] = [[0.1], [0.0], [0.0]]
    return scores


def test_planted_neurons_are_found_for_each_of_their_languages() -> None:
    neurons = select_by_entropy(planted(), ["en", "el", "tr"], None, 0.3)
    assert [(n.language, n.layer, n.unit) for n in neurons] == [
        ("en", 0, 7), ("el", 3, 0), ("tr", 2, 100), ("tr", 3, 0)
    ]  # fmt: skip
    scores = {(n.language, n.layer): n.score for n in neurons}
    assert scores["el", 3] == pytest.approx(1 - np.log(2) / np.log(3))
    assert 0.8 < scores["en", 0] < 1


def test_one_per_cent_is_taken_at_most() -> None:
    neurons = select_by_entropy(planted(), ["en", "el", "tr"], None, None)
    assert 3 <= len({(n.layer, n.unit) for n in neurons}) <= 10
    assert all(n.layer != 1 or not 20 <= n.unit < 28 for n in neurons)
    more = select_by_entropy(planted(), ["en", "el", "tr"], None, None, share=0.05)
    assert set(neurons) < set(more)
    assert len({(n.layer, n.unit) for n in more}) == 50


def test_top_n_and_min_score_narrow_it_further() -> None:
    assert [n.layer for n in select_by_entropy(planted(), ["en", "el", "tr"], 1, 0.3)] == [0, 3, 2]
    assert {n.layer for n in select_by_entropy(planted(), ["en", "el", "tr"], None, 0.5)} == {0, 2}


def test_nothing_specific_gives_nothing() -> None:
    assert select_by_entropy({(0, "mlp.act_fn"): np.full((2, 300), 0.5)}, ["en", "el"], None, None) == []


def test_thresholds_are_kth_values() -> None:
    """1000 probabilities 1..1000 (in thousandths) over two languages: the bar is the 950th, and 5 of 500 units pass."""
    values = (np.arange(1000) + 1.0).reshape(500, 2).T / 1000
    neurons = select_by_entropy({(0, "mlp.act_fn"): values}, ["a", "b"], None, None)
    # Units 475..499 are above the bar; the earliest of them differ most between the languages.
    assert sorted({n.unit for n in neurons}) == [475, 476, 477, 478, 479]
    assert {n.unit for n in neurons if n.language == "a"} == {475, 476, 477, 478, 479}


def test_defaults_are_the_papers() -> None:
    assert (LAPE.observes, LAPE.top_n, LAPE.min_score) == ("activation functions", None, None)
