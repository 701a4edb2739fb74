"""Reading and sampling corpora: what counts as a sentence, what is refused, and that sampling repeats."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.corpora import CorpusSpec, parse_corpus_specs, sample_corpus


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
    assert corpus.available == 3
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_jsonl_reads_the_text_field(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "a\nb", "id": 1}), "", json.dumps({"text": " "}), json.dumps({"text": "c"})]
    assert texts(write(tmp_path / "en.jsonl", "\n".join(lines)), 2) == ["a\nb", "c"]


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
    ("name", "content", "message"),
    [
        ("el.txt", "", r"el=.*el\.txt is empty"),
        ("el.jsonl", '{"text": ""}\n', r"el=.*el\.jsonl is empty"),
        ("el.txt", "a\nb\n", r"el=.*el\.txt has 2 sentences, 5 were asked for"),
        ("el.jsonl", '{"text": "a"}\n{"text": \n', r"el\.jsonl:2: broken JSON"),
        ("el.jsonl", '{"text": "a"}\n{"txt": "b"}\n', r"el\.jsonl:2: no string field 'text'"),
        ("el.jsonl", '["a"]\n', r"el\.jsonl:1: no string field 'text'"),
        ("el.txt", b"a\n\xff\n", r"el\.txt:2: not UTF-8"),
        ("el.csv", "a\n", r"el=.*el\.csv: the file's name must end in \.jsonl or \.txt"),
    ],
)
def test_bad_file(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        texts(write(tmp_path / name, content), 5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.txt", "missing.jsonl", "."])
def test_unreadable_file(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder.txt"
    folder.mkdir()
    with pytest.raises(UserError, match=r"--corpus el=.* cannot be read: "):
        texts(folder if name == "." else tmp_path / name, 5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["en=a.txt", "en=b.txt"], r"names en twice \(a\.txt and b\.txt\)"),
        (["en=a.txt", "el=./a.txt"], "to both en and el"),
        (["en=a.txt"], "given 1 time"),
        (["en=a.txt", "el"], "'el' is not LANGUAGE=FILE"),
        (["en=a.txt", "=b.txt"], "'=b.txt' is not LANGUAGE=FILE"),
        (["en=a.txt", "el="], "'el=' is not LANGUAGE=FILE"),
        (["en=a.txt", "e+l=b.txt"], "is not LANGUAGE=FILE"),
    ],
)
def test_bad_specs(values: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_corpus_specs(values)


def test_spec_keeps_what_follows_the_first_equals_sign() -> None:
    assert parse_corpus_specs(["en=a.txt", "zh-cn=b=c.txt"])[1] == CorpusSpec("zh-cn", Path("b=c.txt"))
