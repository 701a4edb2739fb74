"""Average precision from one sort, in numpy and in torch, against scikit-learn, where floats make it hard."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons import average_precision as average_precision_module
from neuronmoe_plugins.neurons.arrays import FloatArray, IntArray, ScoreArray
from neuronmoe_plugins.neurons.average_precision import average_precision, average_precision_torch
from neuronmoe_plugins.neurons.metrics import require_finite

DENORMAL = np.finfo(np.float32).smallest_subnormal
Score = Callable[[FloatArray, IntArray, int], ScoreArray]


def on(device: str) -> Score:
    def score(pooled: FloatArray, labels: IntArray, num_languages: int) -> ScoreArray:
        scores = average_precision_torch(
            torch.from_numpy(pooled).to(device), torch.from_numpy(labels).to(device), num_languages
        )
        assert scores.device.type == device
        return scores.cpu().numpy()

    return score


IMPLEMENTATIONS = [
    pytest.param(average_precision, id="numpy"),
    pytest.param(on("cpu"), id="torch"),
    pytest.param(on("cuda"), id="cuda", marks=pytest.mark.gpu),
]


def sklearn_scores(pooled: FloatArray, labels: IntArray, num_languages: int) -> ScoreArray:
    return np.array(
        [
            [average_precision_score(labels == language, unit) for unit in pooled.T.astype(np.float64)]
            for language in range(num_languages)
        ]
    )


def random_labels(generator: np.random.Generator, counts: tuple[int, ...]) -> IntArray:
    return generator.permutation(np.repeat(np.arange(len(counts)), counts))


VALUES = {
    "normal": lambda g, shape: g.normal(size=shape),
    "ties in every second unit": lambda g, shape: np.where(
        np.arange(shape[1]) % 2, g.normal(size=shape), g.integers(0, 9, size=shape)
    ),
    "heavy ties": lambda g, shape: g.integers(-2, 3, size=shape),
    "zeros of both signs": lambda g, shape: g.choice([-0.0, 0.0], size=shape),
    "around zero": lambda g, shape: g.choice([-1.0, -DENORMAL, -0.0, 0.0, DENORMAL, 1.0], size=shape),
    "denormals": lambda g, shape: g.integers(-3, 4, size=shape) * DENORMAL,
    "extremes": lambda g, shape: g.choice([-3.4e38, 3.4e38, 1e-38, -1e-38, 1.0], size=shape),
    "neighbours": lambda g, shape: np.float32(1) + g.integers(0, 4, size=shape) * np.finfo(np.float32).eps,
    "constant": lambda g, shape: np.full(shape, -7.5),
}


@lru_cache
def case(kind: str, counts: tuple[int, ...]) -> tuple[FloatArray, IntArray, ScoreArray]:
    """Activations, labels, and scikit-learn's scores of them."""
    generator = np.random.default_rng(7)
    labels = random_labels(generator, counts)
    pooled = VALUES[kind](generator, (len(labels), 12)).astype(np.float32)
    return pooled, labels, sklearn_scores(pooled, labels, len(counts))


@pytest.mark.parametrize("score", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("counts", [(9,), (20, 20), (1, 30, 9), (7, 5, 11, 3, 1, 13)])
def test_equals_scikit_learn(kind: str, counts: tuple[int, ...], score: Score) -> None:
    pooled, labels, expected = case(kind, counts)
    ours = score(pooled, labels, len(counts))
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)


@st.composite
def activations_and_labels(draw: st.DrawFn) -> tuple[FloatArray, IntArray, int]:
    num_languages = draw(st.integers(1, 4))
    more = draw(st.lists(st.integers(0, num_languages - 1), max_size=9))
    labels = draw(st.permutations([*range(num_languages), *more]))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    few = st.sampled_from([-0.0, 0.0, -float(DENORMAL), float(DENORMAL), 1.5])
    unit = st.lists(finite | few, min_size=len(labels), max_size=len(labels))
    units = draw(st.lists(unit, min_size=1, max_size=3))
    return np.array(units, dtype=np.float32).T, np.array(labels), num_languages


@pytest.mark.parametrize("score", IMPLEMENTATIONS)
@settings(max_examples=80, deadline=None)
@given(case=activations_and_labels())
def test_equals_scikit_learn_for_any_float(score: Score, case: tuple[FloatArray, IntArray, int]) -> None:
    np.testing.assert_allclose(score(*case), sklearn_scores(*case), rtol=0, atol=1e-9)


@pytest.mark.parametrize("score", IMPLEMENTATIONS)
def test_hundreds_of_languages_with_one_sample_each(score: Score) -> None:
    """The average precision of one positive is 1 / its rank."""
    generator = np.random.default_rng(3)
    ranks = generator.permuted(np.tile(np.arange(1, 301), (4, 1)), axis=1)
    labels = generator.permutation(300)
    scores = score(-ranks.T.astype(np.float32), labels, 300)
    np.testing.assert_allclose(scores[labels], 1 / ranks.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("values", ["normal", "heavy ties"])
@pytest.mark.parametrize(
    ("chunk_values", "score"),
    [("CHUNK_VALUES", average_precision), ("TORCH_CHUNK_VALUES", on("cpu"))],
    ids=["numpy", "torch"],
)
def test_units_are_scored_alone_whatever_the_chunk(
    chunk_values: str, score: Score, values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(1)
    labels = random_labels(generator, (10, 20, 15))
    pooled = VALUES[values](generator, (45, 31)).astype(np.float32)
    whole = score(pooled, labels, 3)
    monkeypatch.setattr(average_precision_module, chunk_values, 4 * 45)
    np.testing.assert_array_equal(score(pooled, labels, 3), whole)
    monkeypatch.setattr(average_precision_module, chunk_values, 1)
    np.testing.assert_array_equal(score(pooled, labels, 3), whole)


@pytest.mark.parametrize("score", IMPLEMENTATIONS)
def test_only_the_order_of_activations_counts(score: Score) -> None:
    generator = np.random.default_rng(2)
    labels = random_labels(generator, (12, 18))
    pooled = generator.normal(size=(30, 10)).astype(np.float32)
    order = generator.permutation(30)
    expected = score(pooled, labels, 2)
    np.testing.assert_allclose(score(pooled[order], labels[order], 2), expected, atol=1e-12)
    np.testing.assert_allclose(score(pooled * 3 + 1, labels, 2), expected, atol=1e-12)


@pytest.mark.parametrize("score", IMPLEMENTATIONS)
def test_activations_and_labels_stay_as_they_are(score: Score) -> None:
    pooled, labels, _ = case("around zero", (20, 20))
    before = pooled.tobytes(), labels.tobytes()
    score(pooled, labels, 2)
    assert (pooled.tobytes(), labels.tobytes()) == before


@pytest.mark.parametrize("score", IMPLEMENTATIONS)
@pytest.mark.parametrize(("labels", "num_languages"), [([0, 2, 0, 2], 3), ([0, 1, 2, 1], 2), ([0, 1, 1, 0], 3)])
def test_a_language_without_samples_is_refused(score: Score, labels: list[int], num_languages: int) -> None:
    with pytest.raises(ValueError, match=rf"indices of {num_languages} languages, each present; counts are \["):
        score(np.zeros((4, 2), dtype=np.float32), np.array(labels), num_languages)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_floats_are_refused(dtype: type) -> None:
    with pytest.raises(TypeError, match="must be float32"):
        average_precision(np.zeros((4, 2), dtype=dtype), np.array([0, 1, 0, 1]), 2)


def test_extra_memory_is_bounded() -> None:
    """20,000 units and 2,000 samples, whose keys alone are 320 MB, fit into 256 MB beside the activations."""
    samples, units = 2000, 20000
    pooled = np.broadcast_to(np.random.default_rng(4).normal(size=(samples, 1)).astype(np.float32), (samples, units))
    labels = np.arange(samples) % 6
    tracemalloc.start()
    try:
        scores = average_precision(pooled, labels, 6)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert scores.nbytes < peak <= 256e6


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_activation_names_module_and_sample(value: float) -> None:
    pooled = np.zeros((3, 4), dtype=np.float32)
    require_finite("layer 2 mlp.up_proj", pooled, ["a", "b", "c"])
    pooled[1, 2] = value
    with pytest.raises(UserError, match=r"^layer 2 mlp\.up_proj, unit 2: the activation for el\.txt:9 is -?(nan|inf)"):
        require_finite("layer 2 mlp.up_proj", pooled, ["a", "el.txt:9", "c"])
