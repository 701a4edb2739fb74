"""What differences between arms are worth: their interval by documents and by seeds, and a verdict for each claim.

What is compared is the mean over the texts of a language of the bits per byte, as lm-eval adds them up over documents.
Both arms keep their pairs of documents and of seeds. How much depends on the texts says the bootstrap: a resample draws
documents of each text, with replacement. How much depends on the training say the seeds, of which there are too few to
draw from: of three, all are on one side in one case of four. So each resample is moved by a draw from Student's t
distribution, as far as the mean of so many differences lies from that of all trainings there could be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from neuronmoe_plugins.comparison.bootstrap import BY_NAME, Array, Bootstrap, Test, difference_of
from neuronmoe_plugins.comparison.evidence import read_samples, samples_file
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.evaluation import task_name
from neuronmoe_plugins.study.runs import BITS_PER_BYTE, Run, chosen_runs
from neuronmoe_plugins.study.spec import Claim
from neuronmoe_plugins.study.trainings import Training

STATISTIC = BY_NAME["bits_per_byte"]
NEW, OLD = "new language", "old language"
# Of a difference in bits per byte, of which fewer are better.
HOLDS, REFUTED, OPEN = "holds", "is refuted", "is not settled"


@dataclass(frozen=True)
class Difference:
    """Bits per byte of one arm less those of another, on the texts of a language.

    Attributes:
        value: Their difference.
        test: Of it; None where nothing can be drawn: one seed, and one document of each text.
        seeds: How many both have.
        documents: Of each text.
    """

    value: float
    test: Test | None
    seeds: int
    documents: tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    """One comparison of a claim.

    Attributes:
        claim: The claim.
        language: To learn.
        other: The arm that it is compared with.
        of: `NEW` or `OLD`, whose texts.
        difference: Of the first arm from the other; None where there are no runs of both.
    """

    claim: Claim
    language: str
    other: str
    of: str
    difference: Difference | None

    @property
    def words(self) -> str:
        """Whether the first arm is better, which one training of each cannot say."""
        found = self.difference
        test = None if found is None or found.seeds == 1 else found.test
        if test is None or test.is_noise:
            return OPEN
        return HOLDS if test.high < 0 else REFUTED


def documents(runs: Sequence[Run], texts: Sequence[str], stage: str) -> list[Array]:
    """For each text (seeds, documents, 2): log-likelihoods and bytes; raises `UserError` if samples are damaged."""
    found = []
    for name in map(task_name, texts):
        values = []
        for run in runs:
            results = run.results(stage)
            file = samples_file(results, name)
            if file is None:
                raise UserError(f"{results.path.parent} has no samples of {name}; evaluate again with --force")
            values.append(read_samples(file, name, results.tasks[name].items_hash)[BITS_PER_BYTE].values)
        found.append(np.stack(values))
    return found


def resample(texts: Sequence[Array], bootstrap: Bootstrap) -> Array:
    """(resamples,): mean over texts of the bits per byte, of documents drawn with replacement."""
    generator = np.random.default_rng(bootstrap.seed)
    total = np.zeros(bootstrap.resamples)
    for values in texts:
        count = values.shape[1]
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=bootstrap.resamples)
        total += STATISTIC.of_sums(drawn @ values.sum(axis=0)) / len(texts)
    return total


def spread_of_seeds(one: Sequence[Array], two: Sequence[Array], bootstrap: Bootstrap) -> Array:
    """(resamples,): how far off the mean difference over the seeds may be; zeros for one seed, which says nothing."""
    count = len(one[0])
    if count == 1:
        return np.zeros(bootstrap.resamples)
    differences = np.subtract(means_of_seeds(one), means_of_seeds(two))
    draws = np.random.default_rng([bootstrap.seed, count]).standard_t(count - 1, bootstrap.resamples)
    return float(np.std(differences, ddof=1)) / math.sqrt(count) * draws


def mean_of(texts: Sequence[Array]) -> float:
    """The same of all documents and seeds, each once."""
    return float(np.mean([STATISTIC.of_sums(values.sum(axis=(0, 1))) for values in texts]))


def means_of_seeds(texts: Sequence[Array]) -> list[float]:
    """The same of each seed alone."""
    return [mean_of([values[place : place + 1] for values in texts]) for place in range(len(texts[0]))]


def texts_of(training: Training, of: str) -> list[str]:
    """The names of the texts in the new language or the old one."""
    return list(training.target.texts if of == NEW else training.spec.texts)


def judge(trainings: Sequence[Training], bootstrap: Bootstrap) -> list[Verdict]:
    """Every comparison of every claim of a study, after the last stage, with the seeds that both arms have."""
    by_name = {(training.arm.name, training.target.language): training for training in trainings}
    spec, found = trainings[0].spec, []
    kinds = (NEW, OLD) if spec.texts else (NEW,)
    for claim, language in product(spec.claims, spec.targets):
        first = by_name.get((claim.better, language))
        for name, of in product(claim.than, kinds) if first else ():
            other = by_name.get((name, language))
            difference = compare(first, other, of, bootstrap) if first and other else None
            found.append(Verdict(claim, language, name, of, difference))
    return found


def compare(first: Training, other: Training, of: str, bootstrap: Bootstrap) -> Difference | None:
    """The difference of two arms on the texts of a language, after the last stage; None without runs.

    Runs of the same seed are pairs; the base model, which has none, is paired with each.
    """
    runs = product(chosen_runs(first), chosen_runs(other))
    pairs = [(one, two) for one, two in runs if None in (one.seed, two.seed) or one.seed == two.seed]
    if not pairs:
        return None
    texts = texts_of(first, of)
    one, two = (documents(own, texts, own[0].stages[-1]) for own in zip(*pairs, strict=True))
    counts, test = tuple(values.shape[1] for values in one), None
    if max(len(pairs), *counts) > 1:  # else all resamples are the same
        drawn = resample(one, bootstrap) + spread_of_seeds(one, two, bootstrap)
        test = difference_of(resample(two, bootstrap), drawn, bootstrap)
    return Difference(mean_of(one) - mean_of(two), test, len(pairs), counts)


def summary(verdicts: Sequence[Verdict]) -> list[str]:
    """A sentence for each claim and language: it holds if it does against every arm, and is refuted if by one."""
    groups: dict[tuple[str, str], dict[str, set[str]]] = {}
    for each in verdicts:
        groups.setdefault((each.claim.text, each.language), {}).setdefault(each.of, set()).add(each.words)
    return [
        f"{text} ({language}): {'; '.join(f'in the {of} it {_all(words)}' for of, words in own.items())}."
        for (text, language), own in groups.items()
    ]


def _all(words: set[str]) -> str:
    return next((word for word in (REFUTED, OPEN) if word in words), HOLDS)
