"""`hub:` corpora through the real `datasets`, on local data set folders: no network."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuronmoe_plugins.corpora import Corpus, CorpusSpec, parse_corpus_specs, sample_corpus
from neuronmoe_plugins.errors import UserError

pytest.importorskip("datasets")

CARD = """---
configs:
- {config_name: el, data_files: [{split: train, path: el.jsonl}, {split: dev, path: dev.jsonl}]}
- {config_name: en, data_files: [{split: train, path: en.jsonl}]}
---
"""


GREEK = [f"γραμμή {number}" for number in range(20)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of two configurations."""
    (tmp_path / "README.md").write_text(CARD)
    for name, texts in {
        "el": GREEK,
        "dev": [f"dev {i}" for i in range(5)],
        "en": [f"en {i}" for i in range(5)],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts))
    return tmp_path


def sample(source: str, samples: int = 5, **options: Any) -> Corpus:
    spec = parse_corpus_specs(["xx=other.txt", f"el=hub:{source}"])[1]
    return sample_corpus(spec, samples, seed=3, **options)


def test_streams_the_split_and_names_rows(folder: Path) -> None:
    corpus = sample(f"{folder}:el", 20)
    assert [sentence.text for sentence in corpus.sentences] == GREEK
    assert corpus.path == f"hub:{folder}:el@train"
    assert corpus.names()[1] == f"hub:{folder}:el@train:row 2"
    assert corpus.sha256 == hashlib.sha256("".join(f"{text}\n" for text in GREEK).encode()).hexdigest()


def test_samples_as_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"id": range(20), "text": GREEK}), path)
    file = sample_corpus(CorpusSpec("el", path), 5, seed=3)
    assert [sentence.text for sentence in sample(str(tmp_path)).sentences] == [s.text for s in file.sentences]


def test_configuration_split_and_first_rows(folder: Path) -> None:
    assert sample(f"{folder}:en").available == 5
    assert {sentence.text[:3] for sentence in sample(f"{folder}:el@dev").sentences} == {"dev"}
    corpus = sample(f"{folder}:el@train[:7]")
    assert (corpus.available, corpus.path) == (7, f"hub:{folder}:el@train[:7]")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (":tr", "cannot be read: BuilderConfig 'tr' not found"),
        (":el@test", "@test cannot be read: Bad split: test"),
        ("/missing", "missing@train does not exist: there is no such folder"),
        (":el@train[:4]", r"has 4 sentences, 5 were asked for"),
    ],
)
def test_what_is_not_there(folder: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sample(f"{folder}{source}")
    assert "\n" not in str(caught.value)


def test_other_field(folder: Path) -> None:
    with pytest.raises(UserError, match=r"el@train:row 1: no field 'body'; there are: 'id', 'text'; choose"):
        sample(f"{folder}:el", text_field="body")
    with pytest.raises(UserError, match=r"el@train:row 1: field 'id' is int, not text"):
        sample(f"{folder}:el", text_field="id")


def test_broken_file_of_a_data_set(folder: Path) -> None:
    (folder / "en.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(UserError, match=r"en@train cannot be read: .*JSON") as caught:
        sample(f"{folder}:en")
    assert "\n" not in str(caught.value)


def test_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^hub:no-such/data@train cannot be read: ") as caught:
        sample("no-such/data")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "hub:a/b@train needs the package datasets: pip install 'datasets>=4'"),
        (SimpleNamespace(__version__="3.6.0"), "datasets 3.6.0 can run code of a data set; .*'datasets>=4'"),
    ],
)
def test_datasets_missing_or_old(monkeypatch: pytest.MonkeyPatch, module: Any, message: str) -> None:
    monkeypatch.setitem(sys.modules, "datasets", module)
    with pytest.raises(UserError, match=message):
        sample("a/b")
