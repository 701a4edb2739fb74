"""Concept files: each language is scored on the positives and negatives of its own file."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from neuronmoe_plugins.corpora import Concepts, CorpusSpec, SampleSet, read_concepts, sample_corpus
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.average_precision import average_precision

Samples = dict[str, tuple[list[str], list[str]]]
"""Positives and negatives of every language."""


def write(path: Path, language: str, positive: Any, negative: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"concept": language, "group": "sense", "source": "language"}
    record["sentences"] = {"positive": positive, "negative": negative}  # type: ignore[assignment]
    path.write_text(json.dumps(record, ensure_ascii=False))
    return path


def read(folder: Path, samples: Samples) -> Concepts:
    for language, (positive, negative) in samples.items():
        write(folder / f"{language}.json", language, positive, negative)
    return read_concepts(folder)


def consistent() -> Samples:
    """Negatives are the other languages' positives, some of them repeated or in two languages."""
    texts = {language: [f"{language} {i // 2}" for i in range(12)] + ["OK", "123"] for language in ("de", "el", "en")}
    texts["el"].append("OK")
    return {
        language: (own, [text for other in texts if other != language for text in texts[other]])
        for language, own in texts.items()
    }


def independent() -> Samples:
    """Positives and negatives drawn anew for every file, as the published script does."""
    draw = random.Random(3)
    pools = {
        language: [f"{language} {i // 2}" for i in range(30)] + ["OK"] * 9 for language in ("de", "el", "en", "tr")
    }
    return {
        language: (
            draw.sample(pools[language], 20),
            [text for other in pools if other != language for text in draw.sample(pools[other], 20)],
        )
        for language in pools
    }


def activation(texts: Any) -> np.ndarray[Any, Any]:
    """Made-up activations (texts, 3), the same for equal texts."""
    seeds = [zlib.crc32(text.encode()) for text in texts]
    return np.stack([np.random.default_rng(seed).normal(size=3).astype(np.float32) for seed in seeds])


@pytest.mark.parametrize("samples", [consistent(), independent()], ids=["consistent", "independent"])
def test_every_language_keeps_its_own_samples(tmp_path: Path, samples: Samples) -> None:
    concepts = read(tmp_path, samples)
    merged = concepts.samples
    assert merged.languages == tuple(samples)
    assert merged.membership.shape == (len(samples), len(merged.texts))
    for index, (positive, negative) in enumerate(samples.values()):
        used, is_positive = merged.used_by(index)
        texts = np.array(merged.texts)[used]
        assert Counter(texts[is_positive]) == Counter(positive)
        assert Counter(texts[~is_positive]) == Counter(negative)
        assert [sentence.text for sentence in concepts.corpora[index].sentences] == positive


@pytest.mark.parametrize("samples", [consistent(), independent()], ids=["consistent", "independent"])
def test_average_precision_is_that_of_each_file(tmp_path: Path, samples: Samples) -> None:
    merged = read(tmp_path, samples).samples
    pooled = activation(merged.texts)
    for index, (positive, negative) in enumerate(samples.values()):
        truth = [1] * len(positive) + [0] * len(negative)
        values = activation(positive + negative)
        expected = [average_precision_score(truth, values[:, unit]) for unit in range(3)]
        used, is_positive = merged.used_by(index)
        np.testing.assert_allclose(average_precision(pooled[used], is_positive.astype(np.int64), 2)[1], expected)


def test_consistent_files_have_labels_and_no_sentence_twice(tmp_path: Path) -> None:
    samples = consistent()
    merged = read(tmp_path, samples).samples
    labels = merged.labels()
    assert labels is not None
    assert len(labels) == sum(len(positive) for positive, _ in samples.values())
    pooled = activation(merged.texts)
    at_once = average_precision(pooled, labels, 3)
    for index in range(3):
        used, is_positive = merged.used_by(index)
        assert len(used) == len(labels)
        np.testing.assert_allclose(average_precision(pooled, is_positive.astype(np.int64), 2)[1], at_once[index])


def test_independent_files_have_no_labels(tmp_path: Path) -> None:
    samples = independent()
    merged = read(tmp_path, samples).samples
    assert merged.labels() is None
    uses = [Counter(positive + negative) for positive, negative in samples.values()]
    fewest = {text: max(use[text] for use in uses) for use in uses for text in use}
    assert Counter(merged.texts) == fewest


@pytest.mark.parametrize(
    "samples",
    [
        {"el": (["a"], ["b"]), "en": (["b"], ["a", "c"]), "tr": (["c"], ["a", "b"])},  # el leaves c out
        {"el": (["a", "s"], ["b"]), "en": (["b", "s"], ["a"])},  # s is a positive of both and a negative of none
    ],
)
def test_almost_consistent_files_have_no_labels(tmp_path: Path, samples: Samples) -> None:
    assert read(tmp_path, samples).samples.labels() is None


def test_names_and_record(tmp_path: Path) -> None:
    concepts = read(tmp_path, {"el": ([" ένα", "δύο"], ["one", "zwei"]), "en": (["one"], [" ένα"])})
    corpus = concepts.corpora[0]
    path = tmp_path / "el.json"
    assert corpus.names() == [f"{path}:positive 1", f"{path}:positive 2"]
    assert (corpus.language, corpus.path, corpus.available) == ("el", str(path), 2)
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert concepts.samples.texts == (" ένα", "δύο", "one", "zwei")
    assert concepts.samples.names == (*corpus.names(), f"{tmp_path / 'en.json'}:positive 1", f"{path}:negative 2")
    assert concepts.samples.membership.tolist() == [[1, 1, 0, 0], [0, -1, 1, -1]]


def test_corpora_have_labels(tmp_path: Path) -> None:
    for language in ("el", "en"):
        (tmp_path / f"{language}.txt").write_text("".join(f"{language} {i}\n" for i in range(3)))
    corpora = [sample_corpus(CorpusSpec(name, tmp_path / f"{name}.txt"), 2, seed=1) for name in ("el", "en")]
    samples = SampleSet.from_corpora(corpora)
    labels = samples.labels()
    assert labels is not None
    assert labels.tolist() == [0, 0, 1, 1]
    assert samples.names == tuple(corpora[0].names() + corpora[1].names())
    assert samples.membership.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


def languages(folder: Path) -> list[str]:
    return [corpus.language for corpus in read_concepts(folder).corpora]


def test_which_files(tmp_path: Path) -> None:
    for name in ("el", "en", "tr"):
        write(tmp_path / "sense" / f"{name}.json", name, [name], ["x"])
    assert languages(tmp_path / "sense") == languages(tmp_path) == ["el", "en", "tr"]
    (tmp_path / "concept_list.csv").write_text("group,concept\nsense,tr\nsense,el\nsense,tr\n")
    assert languages(tmp_path) == ["tr", "el"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"el\.json: broken JSON"),
        (b"\xff", r"el\.json: not UTF-8 text; if all of it is in an older encoding, .* -f ISO-8859-1 -t UTF-8`"),
        ("{}\n".encode("utf-16"), r"el\.json: not UTF-8 text; convert it: `iconv -f UTF-16LE -t UTF-8`"),
        ("[1]", r"el\.json: not a JSON object with 'concept'"),
        ('{"group": 1}', r"el\.json: no 'concept'; there are: 'group'$"),
        ('{"concept": 5}', r"el\.json: the concept 5 is no language name"),
        ('{"concept": "e l"}', r"el\.json: the concept 'e l' is no language name"),
        ('{"concept": "el"}', r"el\.json: no 'sentences'"),
        ('{"concept": "el", "sentences": ["a"]}', r"el\.json: sentences: not a JSON object with 'positive'"),
        ('{"concept": "el", "sentences": {"positive": ["a"]}}', r"el\.json: sentences: no 'negative'; there are: 'pos"),
        ('{"concept": "el", "sentences": {"positive": [], "negative": ["a"]}}', r"sentences\.positive is no list of"),
        ('{"concept": "el", "sentences": {"positive": ["a"], "negative": "b"}}', r"sentences\.negative is no list of"),
        (
            '{"concept": "el", "sentences": {"positive": ["a", 5], "negative": ["b"]}}',
            r"json:positive 2 is int, not text",
        ),
        (
            '{"concept": "el", "sentences": {"positive": ["a"], "negative": [" "]}}',
            r"json:negative 1 is a blank sentence",
        ),
    ],
)
def test_bad_concept_file(tmp_path: Path, content: str | bytes, message: str) -> None:
    (tmp_path / "el.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_concepts(tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing is no folder"):
        read_concepts(tmp_path / "missing")
    with pytest.raises(UserError, match=r"has no \.json file and no sense/\*\.json"):
        read_concepts(tmp_path)
    for name in ("a", "b"):
        write(tmp_path / f"{name}.json", "el", ["a"], ["b"])
    with pytest.raises(UserError, match=r"a\.json and \S*b\.json both have the concept 'el'"):
        read_concepts(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("group,concept\nsense,hu\n", r"concept_list\.csv lists \S*sense/hu\.json, which is not there"),
        ("concept\nel\n", r"concept_list\.csv: every line needs the columns group and concept"),
        ("group,concept\nsense\n", r"every line needs"),
        ("", r"every line needs"),
    ],
)
def test_bad_concept_list(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "concept_list.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_concepts(tmp_path)
