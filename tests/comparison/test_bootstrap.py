"""The paired bootstrap against closed forms, SciPy, and its own promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats

from neuronmoe_plugins.comparison import bootstrap as module
from neuronmoe_plugins.comparison.bootstrap import BY_NAME, Bootstrap, Stratum, paired_test, resample, standard_error
from neuronmoe_plugins.errors import UserError

MEAN, BITS = BY_NAME["mean"], BY_NAME["bits_per_byte"]
Array = np.ndarray


def means(*models: Any, weight: float = 1.0) -> Stratum:
    """Items whose values are numbers, one sequence per model."""
    values = np.stack([np.asarray(model, dtype=np.float64) for model in models], axis=1)
    return Stratum(np.stack([values, np.ones_like(values)], axis=2), weight)


def draw(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def test_standard_error_of_a_share_is_the_binomial_one() -> None:
    right = [1] * 130 + [0] * 70
    expected = (0.65 * 0.35 / 200) ** 0.5
    assert standard_error([means(right)], MEAN, Bootstrap(20_000)) == pytest.approx(expected, rel=0.02)


def test_resamples_of_two_items_have_the_exact_shares() -> None:
    found = resample([means([0, 1])], MEAN, Bootstrap(20_000))[:, 0]
    shares = [np.mean(found == value) for value in (0, 0.5, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.012)


def test_both_models_get_the_same_draws() -> None:
    first = draw(0, 50)
    both = resample([means(first, first + 0.125)], MEAN, Bootstrap(200))
    np.testing.assert_allclose(both[:, 1] - both[:, 0], 0.125, rtol=1e-12)
    assert both[:, 0].std() > 0.05


def test_strata_are_resampled_in_themselves_and_weighed() -> None:
    constant = [means([3] * 5, weight=0.25), means([7] * 90, weight=0.75)]
    np.testing.assert_allclose(resample(constant, MEAN, Bootstrap(100)), 6, rtol=1e-14)
    one, two = draw(1, 40), 3 * draw(2, 15)
    expected = (0.8**2 * one.var() / 40 + 0.2**2 * two.var() / 15) ** 0.5
    strata = [means(one, weight=0.8), means(two, weight=0.2)]
    assert standard_error(strata, MEAN, Bootstrap(20_000)) == pytest.approx(expected, rel=0.02)


def test_strata_are_drawn_independently() -> None:
    same = draw(3, 30)
    found = resample([means(same, weight=1.0), means(same, weight=-1.0)], MEAN, Bootstrap(5000))
    assert found.std() == pytest.approx((2 * same.var() / 30) ** 0.5, rel=0.05)


def test_interval_of_a_mean_is_scipys() -> None:
    first, second = draw(4, 80), draw(5, 80) + 0.3

    def difference(one: Array, two: Array, axis: int) -> Array:
        return np.asarray(two.mean(axis=axis) - one.mean(axis=axis))

    for confidence in (0.95, 0.8):
        ours = paired_test([means(first, second)], MEAN, Bootstrap(40_000, confidence=confidence))
        theirs = scipy.stats.bootstrap(
            (first, second),
            difference,
            paired=True,
            n_resamples=40_000,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        assert ours is not None
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.012)


def test_interval_of_a_ratio_of_sums_is_scipys() -> None:
    generator = np.random.default_rng(6)
    size = generator.integers(20, 900, 60).astype(float)
    first, second = (-size * generator.normal(rate, 0.2, 60) for rate in (1.2, 1.1))

    def difference(one: Array, two: Array, bytes_: Array, axis: int) -> Array:
        ratios = ((-x.sum(axis=axis) / bytes_.sum(axis=axis) / np.log(2)) for x in (two, one))
        return np.asarray(next(ratios) - next(ratios))

    values = np.stack([np.stack([x, size], axis=1) for x in (first, second)], axis=1)
    ours = paired_test([Stratum(values, 1.0)], BITS, Bootstrap(40_000))
    theirs = scipy.stats.bootstrap(
        (first, second, size),
        difference,
        paired=True,
        n_resamples=40_000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_identical_models_do_not_differ() -> None:
    right = draw(7, 300) > 0
    found = paired_test([means(right, right)], MEAN, Bootstrap())
    assert found is not None
    assert (found.low, found.high, found.p_value, found.is_noise) == (0, 0, 1, True)


def test_a_planted_difference_is_found_only_because_items_are_paired() -> None:
    first = draw(8, 500) > 0
    second = first.copy()
    second[np.flatnonzero(~first)[:12]] = True  # 2.4 points, where one model's standard error is 2.2
    found = paired_test([means(first, second)], MEAN, Bootstrap())
    assert found is not None and not found.is_noise
    assert 0 < found.low < 12 / 500 < found.high
    assert found.p_value < 0.001
    shuffled = np.random.default_rng(0).permutation(second)
    unpaired = paired_test([means(first, shuffled)], MEAN, Bootstrap())
    assert unpaired is not None and unpaired.is_noise


def test_direction_is_the_second_less_the_first() -> None:
    found = paired_test([means([0.0] * 40, draw(9, 40) - 2)], MEAN, Bootstrap())
    assert found is not None and found.high < -1


def test_interval_and_p_value_agree_whatever_the_data() -> None:
    decisions = set()
    for seed in range(150):
        generator = np.random.default_rng(seed)
        few, many = generator.random((2, 30)) < np.array([[0.4], [0.7]])
        pair = (few, many) if seed % 2 else (many, few)
        found = paired_test([means(*pair)], MEAN, Bootstrap(99, confidence=0.9))
        assert found is not None
        assert found.is_noise == (found.p_value > 0.1 + 1e-12)
        decisions.add((seed % 2, found.is_noise))
    assert len(decisions) == 4


def test_equal_models_are_told_apart_as_rarely_as_promised() -> None:
    how = Bootstrap(999, confidence=0.9)
    wrong = 0
    for seed in range(400):
        found = paired_test([means(*draw(seed, 2, 100))], MEAN, how)
        wrong += found is not None and not found.is_noise
    assert 0.06 < wrong / 400 < 0.15


def test_what_cancels_exactly_is_a_tie_also_between_strata() -> None:
    strata = [
        means([1, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1, 0], weight=7 / 13),
        means([0, 1, 0], [0, 1, 1], weight=3 / 13),
        means([1, 0, 0], [1, 1, 0], weight=3 / 13),
    ]
    found = paired_test(strata, MEAN, Bootstrap(20_000))
    # In thirteenths, a resample loses as often as it draws one item, and gains as often as it draws either of two.
    binomials = [scipy.stats.binom.pmf(np.arange(8), size, 1 / size) for size in (3, 3, 7)]
    shares = np.einsum("i,j,k->ijk", *binomials)
    gain, more, loss = np.indices(shares.shape)
    expected = 2 * min(shares[gain + more <= loss].sum(), shares[gain + more >= loss].sum())
    assert found is not None
    assert found.p_value == pytest.approx(expected, abs=0.02)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    strata = [means(draw(10, 30), draw(11, 30), weight=0.5), means(draw(12, 7), draw(13, 7), weight=0.5)]
    whole = resample(strata, MEAN, Bootstrap(100))
    monkeypatch.setattr(module, "CHUNK_COUNTS", 95)
    np.testing.assert_allclose(resample(strata, MEAN, Bootstrap(100)), whole, rtol=1e-12)


def test_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = np.random.Generator.multinomial

    class Watched(np.random.Generator):
        def multinomial(self, n: Any, pvals: Any, size: Any = None) -> Any:
            asked.append(size * len(pvals))
            return real(self, n, pvals, size=size)

    monkeypatch.setattr(module, "CHUNK_COUNTS", 1000)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Watched(np.random.PCG64(seed)))
    resample([means(np.arange(300))], MEAN, Bootstrap(100))
    assert max(asked) <= 1000 and sum(asked) == 300 * 100


def test_order_of_items_is_nothing_and_the_seed_is_all() -> None:
    first, second = draw(14, 2, 60)
    order = np.random.default_rng(1).permutation(60)
    found = paired_test([means(first, second)], MEAN, Bootstrap())
    assert found == paired_test([means(first[order], second[order])], MEAN, Bootstrap())
    other = paired_test([means(first, second)], MEAN, Bootstrap(seed=43))
    assert other != found
    assert other is not None and found is not None
    assert other.low == pytest.approx(found.low, abs=0.03)


def test_a_resample_without_bytes_has_no_value() -> None:
    values = np.array([[[-5.0, 3.0]], [[0.0, 0.0]]])
    assert standard_error([Stratum(values, 1.0)], BITS, Bootstrap()) is None
    assert paired_test([Stratum(np.repeat(values, 2, axis=1), 1.0)], BITS, Bootstrap()) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"confidence": 1.0}, "--confidence must lie between 0 and 1; got 1.0"),
        ({"confidence": 0.0}, "--confidence must lie between 0 and 1; got 0.0"),
        ({"confidence": float("nan")}, "--confidence must lie between 0 and 1; got nan"),
        ({"resamples": 0}, "--resamples must be at least 39 for a confidence of 0.95; got 0"),
        ({"resamples": 38}, "--resamples must be at least 39 for a confidence of 0.95; got 38"),
        ({"resamples": 18, "confidence": 0.9}, "--resamples must be at least 19 for a confidence of 0.9; got 18"),
        ({"seed": -1}, "--seed must not be negative; got -1"),
    ],
)
def test_bad_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Bootstrap(**values)
    assert str(error.value) == message


@pytest.mark.parametrize(("resamples", "confidence", "tail"), [(39, 0.95, 1), (19, 0.9, 1), (10_000, 0.95, 250)])
def test_fewest_resamples_have_an_interval(resamples: int, confidence: float, tail: int) -> None:
    how = Bootstrap(resamples, confidence=confidence)
    assert how.tail == tail
    found = paired_test([means([0, 0, 1], [1, 1, 2])], MEAN, how)
    assert found is not None
    assert (found.low, found.high) == (1, 1)
