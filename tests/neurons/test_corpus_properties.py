"""Whatever bytes a corpus has, it is sampled or refused in one line that names the file."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronmoe_plugins.corpora import Corpus, CorpusSpec, read_concepts, sample_corpus
from neuronmoe_plugins.errors import UserError

PLAIN = "ένα δύο.\nΤρία; πέντε\n\n\ufeffέξι\n"
CONCEPT = {"concept": "el", "group": "sense", "sentences": {"positive": ["ένα", "δύο"], "negative": ["one", "two"]}}


def parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), buffer)
    return buffer.getvalue()


def jsonl(texts: list[str]) -> bytes:
    return b"\n".join(json.dumps({"text": text}).encode() for text in texts)


INTACT = {
    "a.txt": PLAIN.encode(),
    "a.jsonl": jsonl(PLAIN.splitlines()),
    "a.txt.gz": gzip.compress(PLAIN.encode(), mtime=0),
    "a.jsonl.gz": gzip.compress(jsonl(PLAIN.splitlines()), mtime=0),
    "a.parquet": parquet(PLAIN.splitlines()),
    "a.json": json.dumps(CONCEPT).encode(),
}


@st.composite
def damaged(draw: st.DrawFn, intact: bytes) -> bytes:
    """The file cut off and with a few bytes replaced."""
    raw = bytearray(intact[: draw(st.integers(0, 2 * len(intact)))])
    for _ in range(draw(st.integers(0, 3)) if raw else 0):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)


@contextmanager
def written(name: str, content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        yield path


def sample(path: Path, samples: int, split: bool = False) -> Corpus:
    return sample_corpus(CorpusSpec("el", path), samples, seed=1, split_sentences=split)


@pytest.mark.parametrize("name", INTACT)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_bytes(name: str, data: st.DataObject) -> None:
    content = data.draw(st.one_of(st.binary(), damaged(INTACT[name])))
    with written(name, content) as path:
        try:
            if name == "a.json":
                sentences = read_concepts(path.parent).corpora[0].sentences
            else:
                sentences = sample(path, 1, split=data.draw(st.booleans())).sentences
        except UserError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
        else:
            assert sentences
            assert all(sentence.text.strip() and sentence.text.encode() for sentence in sentences)


def test_intact_files_are_read() -> None:
    for name in INTACT:
        with written(name, INTACT[name]) as path:
            corpus = read_concepts(path.parent).corpora[0] if name == "a.json" else sample(path, 3)
            assert corpus.available == len(corpus.sentences)


# A byte order mark at the beginning of a text file belongs to the file, not to the text.
LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\0\ufeff"), max_size=20)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(LINES, max_size=30), samples=st.integers(1, 30), split=st.booleans())
def test_every_kind_gives_the_same_sample(texts: list[str], samples: int, split: bool) -> None:
    outcomes = []
    plain = "\n".join(texts).encode()
    for name, content in {"a.txt": plain, "a.jsonl": jsonl(texts), "a.parquet": parquet(texts)}.items():
        with written(name, content) as path:
            try:
                corpus = sample(path, samples, split)
            except UserError as error:
                outcomes.append(str(error).split(name)[-1])
            else:
                outcomes.append((corpus.available, [sentence.text for sentence in corpus.sentences]))
    assert outcomes == [outcomes[0]] * 3


@settings(max_examples=60, deadline=None)
@given(available=st.integers(1, 60), data=st.data())
def test_as_many_as_asked_for_and_no_line_twice(available: int, data: st.DataObject) -> None:
    samples = data.draw(st.integers(1, available))
    with written("a.txt", "".join(f"{line}\n" for line in range(available)).encode()) as path:
        corpus = sample(path, samples)
        assert corpus == sample(path, samples)
        lines = [int(sentence.text) for sentence in corpus.sentences]
        assert corpus.names() == [f"{path}:{line + 1}" for line in lines]
        assert len(lines) == samples
        assert lines == sorted(set(lines))
