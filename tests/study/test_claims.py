"""What differences are worth, against closed forms; and a study's page with its verdicts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from made_studies import SPEC, Studies

from neuronmoe_plugins.comparison.bootstrap import Bootstrap, Test, difference_of
from neuronmoe_plugins.study.claims import OPEN, Difference, judge, mean_of, resample, spread_of_seeds
from neuronmoe_plugins.study.trainings import load_trainings

MANY = Bootstrap(resamples=20_000)
ARMS = {
    "lora": SPEC["arms"]["lora"] | {"learning_rates": 0.002},
    "far": SPEC["arms"]["lora"] | {"rank": 8, "learning_rates": 0.004},
    "even": SPEC["arms"]["even"],
}
CLAIMS = {
    "Small is better": {"better": "lora-4", "than": ["far"]},
    "The model as it was is best": {"better": "base", "than": ["lora-4", "far"]},
    "Experts differ": {"better": "even", "than": "even"},
}


def texts_of(bits: np.ndarray, size: float = 10.0) -> np.ndarray:
    """(seeds, documents, 2) of documents of the same size with these bits per byte."""
    return np.stack([-bits * size * math.log(2), np.full(bits.shape, size)], axis=-1)


def interval_of(one: np.ndarray, two: np.ndarray) -> Test:
    first, second = [texts_of(one)], [texts_of(two)]
    drawn = resample(first, MANY) + spread_of_seeds(first, second, MANY)
    test = difference_of(resample(second, MANY), drawn, MANY)
    assert test is not None
    return test


def test_documents_are_drawn() -> None:
    bits = np.random.default_rng(0).normal(size=(1, 20))

    values = resample([texts_of(bits + np.zeros((3, 1)))], MANY)

    assert mean_of([texts_of(bits)]) == pytest.approx(bits.mean())
    assert values.mean() == pytest.approx(bits.mean(), abs=0.02)
    assert values.var() == pytest.approx(bits.var() / 20, rel=0.05)
    assert not spread_of_seeds([texts_of(bits)], [texts_of(0 * bits)], MANY).any(), "one seed says nothing of others"


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_seeds_have_the_interval_of_students_t(seeds: int) -> None:
    differences = np.random.default_rng(seeds).normal(0.3, 1, size=(seeds, 1))
    others = np.random.default_rng(1).normal(size=(seeds, 1))
    expected = scipy.stats.ttest_1samp(differences[:, 0], 0)

    test = interval_of(others + differences + np.zeros(5), others + np.zeros(5))

    ends = expected.confidence_interval(0.95)
    width = ends.high - ends.low
    assert (test.low, test.high) == (pytest.approx(ends.low, abs=width / 20), pytest.approx(ends.high, abs=width / 20))
    assert test.p_value == pytest.approx(expected.pvalue, abs=0.02)


def test_seeds_all_on_one_side_by_little_settle_nothing() -> None:
    differences = np.array([[-0.0155], [-0.0036], [-0.0159]])

    test = interval_of(1 + differences + np.zeros(5), np.ones((3, 5)))

    assert test.is_noise, "a bootstrap of the three would never draw 0"


def test_documents_and_seeds_add_their_variances() -> None:
    generator = np.random.default_rng(0)
    of_seeds, of_documents = generator.normal(size=(12, 1)), generator.normal(size=(1, 20))
    one, two = [texts_of(of_seeds + of_documents)], [texts_of(np.zeros((12, 20)))]

    drawn = resample(one, MANY) + spread_of_seeds(one, two, MANY)

    of_t = of_seeds.var(ddof=1) / 12 * 11 / 9  # the variance of Student's t with 11 degrees of freedom
    assert drawn.var() == pytest.approx(of_t + of_documents.var() / 20, rel=0.05)


def test_texts_count_alike_and_share_their_seeds() -> None:
    of_seeds = np.array([[0.0], [1.0], [5.0], [2.0], [1.5]])
    one = [texts_of(of_seeds + np.zeros((5, count)), size) for count, size in ((5, 1.0), (50, 100.0))]
    two = [0 * values + texts_of(np.zeros((1, 1))) for values in one]

    # Were each text's seeds drawn anew, the spread would be smaller by the root of 2.
    alone = spread_of_seeds(one[:1], two[:1], MANY)
    assert np.allclose(spread_of_seeds(one, two, MANY), alone)
    assert mean_of([texts_of(np.full((1, 5), 1.0)), texts_of(np.full((1, 9), 3.0), 7.0)]) == pytest.approx(2)


def test_long_documents_weigh_more_within_a_text() -> None:
    bits, sizes = np.array([[1.0, 3.0]]), np.array([[10.0, 30.0]])
    text = np.stack([-bits * sizes * math.log(2), sizes], axis=-1)

    assert mean_of([text]) == pytest.approx(2.5)


def test_the_page_has_a_verdict_for_each_claim(studies: Studies, with_pages: bool) -> None:
    studies.run("--arms", "lora-4,even", arms=ARMS, claims=CLAIMS)
    html = Path("out/report.html").read_text()
    assert "Small is better (el): in the new language it is not settled" in html

    result = studies.run(arms=ARMS, claims=CLAIMS)

    assert result.exit_code == 0, result.exception
    html = Path("out/report.html").read_text()
    assert "Small is better (el): in the new language it holds; in the old language it holds." in html
    assert (
        "The model as it was is best (el): in the new language it is refuted; in the old language it is refuted."
        in html
    )
    assert "Experts differ (el): in the new language it is not settled; in the old language it is not settled." in html
    for cell in ("-0.2000", "-0.2000 to -0.2000", "0.0002", "2", "3", "holds"):
        assert f">{cell}<" in html
    assert Path("out/figures/curves-el.png").stat().st_size > 10_000
    assert "<title>spec: a study</title>" in html


def test_one_seed_settles_nothing(studies: Studies) -> None:
    studies.run(arms=ARMS, claims=CLAIMS, seeds=1)

    verdict, *others = judge(load_trainings(Path("spec.yaml"), Path("out")), MANY)

    assert {each.words for each in (verdict, *others)} == {OPEN}
    found = verdict.difference
    assert found and found.seeds == 1 and found.test and found.test.high < 0, "by the texts alone it would hold"


def test_one_seed_and_one_document_settle_nothing(studies: Studies) -> None:
    studies.run(arms=ARMS, claims=CLAIMS, seeds=1)
    for file in Path("out").rglob("samples_*.jsonl"):
        file.write_text(file.read_text().splitlines()[0] + "\n")

    verdicts = judge(load_trainings(Path("spec.yaml"), Path("out")), MANY)

    assert {each.words for each in verdicts} == {OPEN}
    assert verdicts[0].difference == Difference(pytest.approx(-0.2), None, seeds=1, documents=(1,))


def test_a_claim_about_no_arm_is_refused(studies: Studies) -> None:
    result = studies.run(claims={"x": {"better": "lora-4", "than": "lora"}})

    assert str(result.exception).endswith("spec.yaml: claims: x: no arm is called lora; there are: base, lora-4, even")
