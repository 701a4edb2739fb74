"""Sampling corpora: what counts as a sentence, what is refused, and that sampling repeats."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from neuronmoe_plugins.corpora import CorpusSpec, HubDataset, parse_corpus_specs, sample_corpus
from neuronmoe_plugins.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(path: Path, samples: int, seed: int = 42, language: str = "el") -> list[str]:
    return [sentence.text for sentence in sample_corpus(CorpusSpec(language, path), samples, seed).sentences]


def test_txt_has_a_sentence_a_line_and_skips_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "el.txt", "\ufeffένα\r\n\n  \nδύο \nτρία")
    corpus = sample_corpus(CorpusSpec("el", path), 3, seed=0)
    assert [sentence.text for sentence in corpus.sentences] == ["ένα", "δύο", "τρία"]
    assert corpus.names() == [f"{path}:1", f"{path}:4", f"{path}:5"]
    assert (corpus.path, corpus.available, corpus.duplicates) == (str(path), 3, 0)
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_jsonl_reads_the_text_field(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "a\nb", "id": 1}), "", json.dumps({"text": " "}), json.dumps({"text": " c\n"})]
    assert texts(write(tmp_path / "en.jsonl", "\n".join(lines)), 2) == ["a\nb", "c"]


def test_sampled_duplicates_are_kept_and_counted(tmp_path: Path) -> None:
    corpus = sample_corpus(CorpusSpec("el", write(tmp_path / "el.txt", "a\nb\n a\na \n")), 4, seed=1)
    assert [sentence.text for sentence in corpus.sentences] == ["a", "b", "a", "a"]
    assert corpus.duplicates == 2


def test_sampling_repeats_and_depends_on_seed_and_language(tmp_path: Path) -> None:
    path = write(tmp_path / "el.txt", "\n".join(f"line {i}" for i in range(200)))
    sample = texts(path, 20)
    assert len(set(sample)) == 20
    assert sample == texts(path, 20)
    assert sample != texts(path, 20, seed=43)
    assert sample != texts(path, 20, language="tr")


def test_every_sentence_is_as_likely(tmp_path: Path) -> None:
    path = write(tmp_path / "el.txt", "\n".join(map(str, range(10))))
    drawn = Counter(text for seed in range(2000) for text in texts(path, 3, seed=seed))
    # 600 expected of each, standard deviation 20.5
    assert set(drawn) == set(map(str, range(10)))
    assert all(500 < count < 700 for count in drawn.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty: it has no sentence"), (" \n", "is empty"), ("a\nb\n", "has 2 sentences, 5 were asked for; .* 2$")],
)
def test_too_few_sentences(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^--corpus el=.*el\.txt {message}"):
        texts(write(tmp_path / "el.txt", content), 5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["en=a.txt", "en=b.txt"], r"names en twice \(a\.txt and b\.txt\)"),
        (["en=a.txt", "el=./a.txt"], "to both en and el"),
        (["en=a.txt"], "given 1 time"),
        (["en=a.txt", "el"], "'el' is not LANGUAGE=SOURCE"),
        (["en=a.txt", "=b.txt"], "'=b.txt' is not LANGUAGE=SOURCE"),
        (["en=a.txt", "el="], "'el=' is not LANGUAGE=SOURCE"),
        (["en=a.txt", "e+l=b.txt"], "is not LANGUAGE=SOURCE"),
        (["en=hub:a/b", "el=hub:a/b@train"], "hub:a/b@train to both en and el"),
        (["en=a.txt", "el=hub:"], "is not LANGUAGE=hub:OWNER/NAME"),
        # datasets takes a name without a slash for a file format, and reads the current folder
        (["en=a.txt", "el=hub:json"], "is not LANGUAGE=hub:OWNER/NAME"),
        (["en=a.txt", "el=hub:a/b:"], "is not LANGUAGE=hub:OWNER/NAME"),
        (["en=a.txt", "el=hub:a/b@"], "is not LANGUAGE=hub:OWNER/NAME"),
        (["en=a.txt", "el=hub:a/b@train[5:]"], "is not LANGUAGE=hub:OWNER/NAME"),
        (["en=a.txt", "el=hub:a/b@train[:0]"], "is not LANGUAGE=hub:OWNER/NAME"),
    ],
)
def test_bad_specs(values: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_corpus_specs(values)


def test_spec_keeps_what_follows_the_first_equals_sign() -> None:
    assert parse_corpus_specs(["en=a.txt", "zh-cn=b=c.txt"])[1] == CorpusSpec("zh-cn", Path("b=c.txt"))


@pytest.mark.parametrize(
    ("source", "dataset", "written"),
    [
        ("hub:a/b", HubDataset("a/b"), "hub:a/b@train"),
        ("hub:a/b:20231101.el", HubDataset("a/b", "20231101.el"), "hub:a/b:20231101.el@train"),
        ("hub:./folder@test", HubDataset("./folder", None, "test"), "hub:./folder@test"),
        ("hub:a/b:el@train[:20]", HubDataset("a/b", "el", "train", 20), "hub:a/b:el@train[:20]"),
    ],
)
def test_hub_data_sets(source: str, dataset: HubDataset, written: str) -> None:
    spec = parse_corpus_specs(["en=a.txt", f"el={source}"])[1]
    assert spec == CorpusSpec("el", dataset)
    assert str(spec) == f"el={written}"
