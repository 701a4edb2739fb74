"""Average precision from one packed sort against scikit-learn, where floats make it hard."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons import average_precision as module
from neuronmoe_plugins.neurons.arrays import FloatArray, IntArray, ScoreArray
from neuronmoe_plugins.neurons.average_precision import average_precision
from neuronmoe_plugins.neurons.metrics import require_finite

DENORMAL = np.finfo(np.float32).smallest_subnormal


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
    "heavy ties": lambda g, shape: g.integers(-2, 3, size=shape),
    "zeros of both signs": lambda g, shape: g.choice([-0.0, 0.0], size=shape),
    "around zero": lambda g, shape: g.choice([-1.0, -DENORMAL, -0.0, 0.0, DENORMAL, 1.0], size=shape),
    "denormals": lambda g, shape: g.integers(-3, 4, size=shape) * DENORMAL,
    "extremes": lambda g, shape: g.choice([-3.4e38, 3.4e38, 1e-38, -1e-38, 1.0], size=shape),
    "constant": lambda g, shape: np.full(shape, -7.5),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("counts", [(20, 20), (1, 30, 9), (7, 5, 11, 3, 1, 13)])
def test_equals_scikit_learn(kind: str, counts: tuple[int, ...]) -> None:
    generator = np.random.default_rng(7)
    labels = random_labels(generator, counts)
    pooled = VALUES[kind](generator, (len(labels), 25)).astype(np.float32)
    ours = average_precision(pooled, labels, len(counts))
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, sklearn_scores(pooled, labels, len(counts)), rtol=0, atol=1e-9)


def test_units_are_scored_alone_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    labels = random_labels(generator, (10, 20, 15))
    pooled = generator.normal(size=(45, 31)).astype(np.float32)
    whole = average_precision(pooled, labels, 3)
    monkeypatch.setattr(module, "CHUNK_VALUES", 4 * 45)
    np.testing.assert_array_equal(average_precision(pooled, labels, 3), whole)


def test_only_the_order_of_activations_counts() -> None:
    generator = np.random.default_rng(2)
    labels = random_labels(generator, (12, 18))
    pooled = generator.normal(size=(30, 10)).astype(np.float32)
    order = generator.permutation(30)
    expected = average_precision(pooled, labels, 2)
    np.testing.assert_allclose(average_precision(pooled[order], labels[order], 2), expected, atol=1e-12)
    np.testing.assert_allclose(average_precision(pooled * 3 + 1, labels, 2), expected, atol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_activation_names_module_and_sample(value: float) -> None:
    pooled = np.zeros((3, 4), dtype=np.float32)
    require_finite("layer 2 mlp.up_proj", pooled, ["a", "b", "c"])
    pooled[1, 2] = value
    with pytest.raises(UserError, match=r"^layer 2 mlp\.up_proj, unit 2: the activation for el\.txt:9 is -?(nan|inf)"):
        require_finite("layer 2 mlp.up_proj", pooled, ["a", "el.txt:9", "c"])
