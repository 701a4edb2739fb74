"""The kinds of corpus files: each gives the same sentences, names where they stand, and refuses what is broken."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuronmoe_plugins.corpora import Corpus, CorpusSpec, sample_corpus
from neuronmoe_plugins.errors import UserError

TEXTS = [f"γραμμή {number}" for number in range(2500)]


def sample(path: Path, samples: int = 3, **options: Any) -> Corpus:
    return sample_corpus(CorpusSpec("el", path), samples, seed=7, **options)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def write_texts(path: Path, texts: list[str], field: str = "text") -> Path:
    if path.suffix == ".parquet":
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": range(len(texts)), field: texts}), path, row_group_size=700)
        return path
    lines = texts if ".txt" in path.name else [json.dumps({"id": 1, field: text}) for text in texts]
    return write(path, "\n".join(lines))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.gz", "a.parquet", "A.JSONL"])
def test_every_kind_gives_the_same_sample(tmp_path: Path, name: str) -> None:
    corpus = sample(write_texts(tmp_path / name, TEXTS), 50)
    expected = sample(write_texts(tmp_path / "plain.txt", TEXTS), 50)
    assert [sentence.text for sentence in corpus.sentences] == [sentence.text for sentence in expected.sentences]
    assert corpus.available == 2500
    assert corpus.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    place = "row " if name.endswith("parquet") else ""
    numbers = [TEXTS.index(sentence.text) + 1 for sentence in corpus.sentences]
    assert corpus.names() == [f"{tmp_path / name}:{place}{number}" for number in numbers]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_arrow_type_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(["a", "b", "a"]).cast(kind)}), tmp_path / "a.parquet")
    assert [sentence.text for sentence in sample(tmp_path / "a.parquet").sentences] == ["a", "b", "a"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_text_field(tmp_path: Path, name: str) -> None:
    path = write_texts(tmp_path / name, TEXTS, field="raw.content")
    assert sample(path, 50, text_field="raw.content").available == 2500


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "el"
    write(folder / "b" / "2.jsonl", '{"text": "d"}\n{"text": "e"}')
    write_texts(folder / "b" / "10.parquet", ["b", "c"])
    write(folder / "a.txt.gz", "a\n")
    write(folder / "c.txt", "\n")
    write(folder / "README.md", "not text\n")
    write(folder / ".cache" / "x.txt", "hidden\n")
    return folder


def test_folder(folder: Path) -> None:
    corpus = sample(folder, 5)
    assert [sentence.text for sentence in corpus.sentences] == ["a", "b", "c", "d", "e"]
    names = ["a.txt.gz", "b/10.parquet", "b/2.jsonl", "c.txt"]
    assert [file.path for file in corpus.files] == [str(folder / name) for name in names]
    assert [file.sentences for file in corpus.files] == [1, 2, 2, 0]
    sums = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    assert [file.sha256 for file in corpus.files] == sums
    listing = "".join(f"{value}  {name}\n" for value, name in zip(sums, names, strict=True))
    assert corpus.sha256 == hashlib.sha256(listing.encode()).hexdigest()
    assert corpus.names()[-1] == f"{folder / 'b' / '2.jsonl'}:2"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("el.jsonl", '{"text": "a"}\n{"text": \n', r"el\.jsonl:2: broken JSON"),
        ("el.jsonl", "[" * 100_000, r"el\.jsonl:1: broken JSON"),
        (
            "el.jsonl",
            '{"text": "a"}\n{"txt": "b", "id": 1}\n',
            r"el\.jsonl:2: no field 'text'; there are: 'txt', 'id'; ",
        ),
        ("el.jsonl", "{}\n", r"el\.jsonl:1: no field 'text'; there are: none"),
        ("el.jsonl", '["a"]\n', r"el\.jsonl:1: not a JSON object"),
        ("el.jsonl", '{"text": null}\n', r"el\.jsonl:1: field 'text' is null, not text"),
        ("el.jsonl", '{"text": 5}\n', r"el\.jsonl:1: field 'text' is int, not text"),
        ("el.jsonl", '{"text": "a\\ud800"}\n', r"el\.jsonl:1: field 'text' has a lone surrogate \(\\ud800\)"),
        ("el.txt", b"a\n\xff\n", r"el\.txt:2: not UTF-8"),
        ("el.txt", "a b c d\ne\0f\n", r"el\.txt:2: a NUL character"),
        ("el.txt.gz", b"a\n\xff\n", r"el\.txt\.gz:2: not UTF-8"),
        ("el.parquet", b"", r"el\.parquet: not a readable Parquet file"),
        ("el.parquet", b"PAR1 but no more PAR1", r"el\.parquet: not a readable Parquet file"),
        ("el.csv", "a\n", r"--corpus el=.*el\.csv: the file's name must end in \.jsonl, \.jsonl\.gz, \.txt"),
    ],
)
def test_bad_file(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sample(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spoil", [lambda raw: raw[:-5], lambda raw: raw[:30] + b"\xff" + raw[31:], lambda raw: b"a\n"])
def test_broken_gzip_file(tmp_path: Path, spoil: Any) -> None:
    path = write(tmp_path / "el.txt.gz", "\n".join(TEXTS))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=r"el\.txt\.gz: broken gzip file \(.+\)$"):
        sample(path)


def test_truncated_parquet_file(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "el.parquet", TEXTS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"el\.parquet: not a readable Parquet file \(.+\)$"):
        sample(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [1], "body": ["a"]}, r"el\.parquet: no column 'text'; there are: 'id', 'body'; choose by --text-field"),
        ({"text": [1]}, r"el\.parquet: column 'text' holds int64, not text"),
        ({"text": [["a"]]}, r"el\.parquet: column 'text' holds list<.*>, not text"),
        ({"text": ["a", None]}, r"el\.parquet:row 2: column 'text' is null, not text"),
        ({f"column_{number}": [1] for number in range(30)}, r"'column_9', and 20 more;"),
    ],
)
def test_bad_parquet_column(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "el.parquet")
    with pytest.raises(UserError, match=message):
        sample(tmp_path / "el.parquet")


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xff"]).buffers())
    pq.write_table(pa.table({"text": texts}), tmp_path / "el.parquet")
    with pytest.raises(UserError, match=r"el\.parquet:row 2: not UTF-8 text"):
        sample(tmp_path / "el.parquet")


def test_parquet_column_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "el.parquet", ["a"], field="body")
    path.write_bytes(path.read_bytes().replace(b"body", b"b\xffdy"))
    with pytest.raises(UserError, match=r"el\.parquet: not a readable Parquet file \('utf-8' codec"):
        sample(path)


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--corpus el=.*el\.txt cannot be read: no such file or folder .*hub:OWNER"):
        sample(tmp_path / "el.txt")


def test_folder_without_a_corpus_file(tmp_path: Path) -> None:
    write(tmp_path / "README.md", "a\n")
    with pytest.raises(UserError, match=r"--corpus el=.* has no file that ends in \.jsonl, "):
        sample(tmp_path)


def test_folder_names_the_broken_file(folder: Path) -> None:
    write(folder / "b" / "2.jsonl", "{")
    with pytest.raises(UserError, match=r"b/2\.jsonl:1: broken JSON"):
        sample(folder)
