"""Files most of whose text would be lost: in another encoding, of another kind than their name says, or half broken."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_preparation.preparing import entry_of, prepare, texts_of, write_jsonl, write_spec
from neuronmoe_plugins.corpora import Corpus, CorpusSpec, sample_corpus
from neuronmoe_plugins.errors import UserError

TEXTS = {
    "el": ["ένα κείμενο", "δύο “κείμενα”", "τρία"],
    "tr": ["ışık ağaçta", "üç gün"],
    "hu": ["árvíztűrő", "tükörfúrógép"],
    "ru": ["три текста", "два"],
    "zh": ["三个文本", "你好 世界"],
    "is": ["þrír textar", "sjö dagar"],
}
OLDER = [
    *(("el", "iso8859-7", "ISO-8859-7"), ("el", "cp1253", "WINDOWS-1253"), ("tr", "iso8859-9", "ISO-8859-9")),
    *(("hu", "iso8859-2", "ISO-8859-2"), ("ru", "cp1251", "WINDOWS-1251"), ("zh", "gb18030", "GB18030")),
    ("is", "latin-1", "ISO-8859-1"),
]
WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


def refusals(path: Path, language: str = "el") -> tuple[str, str]:
    """What `data` and `analyze` say of a file, each in one line."""
    data = {"source": str(path), "documents": "all", "language": language, "shortage": "warn"}
    with pytest.raises(UserError) as of_data:
        prepare(write_spec(path.with_name("spec.yaml"), [data]), path.with_name("out"))
    with pytest.raises(UserError) as of_analyze:
        sample_corpus(CorpusSpec(language, path), 1, seed=7)
    messages = str(of_data.value), str(of_analyze.value)
    assert all(str(path) in message and "\n" not in message for message in messages)
    return messages


def sampled(path: Path) -> Corpus:
    return sample_corpus(CorpusSpec("el", path), 1, seed=7)


def named_encoding(message: str) -> str:
    """What a message tells iconv to convert from."""
    (name,) = re.findall(r"`iconv -f (\S+) -t UTF-8`", message)
    return str(name)


def lines(language: str, ending: str) -> str:
    texts = TEXTS[language]
    return "".join(f"{json.dumps({'text': t}, ensure_ascii=False) if 'json' in ending else t}\n" for t in texts)


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".txt.gz"])
@pytest.mark.parametrize(("language", "codec", "name"), OLDER)
def test_older_encodings_are_named_by_the_language(
    language: str, codec: str, name: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"old{ending}"
    text = lines(language, ending).replace("“", '"' if codec == "iso8859-7" else "“").replace("”", "'")
    if "json" in ending:
        text = text.replace('δύο "', "δύο ").replace("“", "“")
    raw = text.encode(codec)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    of_data, of_analyze = refusals(path, language)
    assert re.search(
        r"^el_train: (\d) of \1 records of .* have no readable text \(\d not UTF-8; first .* at byte 0", of_data
    )
    assert f"{path}:1: not UTF-8 text; if all of it is in an older encoding, convert it, as by" in of_analyze
    for message in (of_data, of_analyze):
        assert named_encoding(message) == name
        assert raw.decode(name) == text


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("codec", WIDE)
def test_wide_encodings_are_known_with_and_without_a_mark(codec: str, ending: str, tmp_path: Path) -> None:
    for language in ("el", "zh", "is"):
        path, text = tmp_path / f"wide{ending}", lines(language, ending)
        raw = text.encode(codec)
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
        for message in refusals(path, language):
            assert "by its first bytes, not UTF-8; convert it" in message
            assert raw.decode(named_encoding(message)).removeprefix("\ufeff") == text


def zipped(raw: bytes) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("el.txt", raw)
    return file.getvalue()


def zstd(raw: bytes) -> bytes:
    with pa.CompressedOutputStream(file := pa.BufferOutputStream(), "zstd") as packed:
        packed.write(raw)
    return bytes(file.getvalue())


def parquet(raw: bytes) -> bytes:
    pq.write_table(pa.table({"text": [raw.decode()]}), file := io.BytesIO())
    return file.getvalue()


OTHER = {
    "gzip": (gzip.compress, r"is gzip by its first bytes, not \.jsonl; let its name end in \.jsonl\.gz"),
    "zstd": (zstd, r"is zstd by its first bytes, not \.jsonl; unpack it"),
    "zip": (zipped, r"is a zip archive by its first bytes, not \.jsonl; unpack it"),
    "bzip2": (bz2.compress, "is bzip2 by its first bytes"),
    "xz": (lzma.compress, "is xz by its first bytes"),
    "parquet": (parquet, r"is Parquet by its first bytes, not \.jsonl; let its name end in \.parquet"),
    "pdf": (lambda raw: b"%PDF-1.7\n" + raw, "is a PDF by its first bytes, not .jsonl; export its text"),
    "array": (lambda raw: b"[" + raw.replace(b"}\n{", b"},\n{") + b"]", "is one JSON array, not an object a line"),
    "lines": (lambda raw: raw.replace(b"\n", b"\r"), "has lines that end in CR alone"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_files_of_another_kind_than_their_name_says(kind: str, tmp_path: Path) -> None:
    change, message = OTHER[kind]
    (tmp_path / "el.jsonl").write_bytes(change(lines("el", ".jsonl").encode()))
    of_data, of_analyze = refusals(tmp_path / "el.jsonl")
    assert re.search(rf"^{re.escape(str(tmp_path))}/el\.jsonl {message}", of_data)
    assert of_data.endswith(", or leave it out by `unreadable_files: warn`")
    assert re.search(rf"^{re.escape(str(tmp_path))}/el\.jsonl {message}", of_analyze)


@pytest.mark.parametrize("change", [gzip.compress, parquet])
def test_contents_of_a_gzip_file_and_other_files_by_its_name(change: object, tmp_path: Path) -> None:
    path = tmp_path / "el.txt.gz"
    raw = change("ένα\n".encode())  # type: ignore[operator]
    path.write_bytes(gzip.compress(raw) if change is gzip.compress else raw)
    for message in refusals(path):
        assert re.search("is gzip by its first bytes, not text; unpack it|is Parquet by its first bytes", message)


def test_a_file_of_another_kind_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("ένα\n".encode("utf-16-le"))
    (tmp_path / "b.txt").write_text("δύο\n")
    spec = write_spec(tmp_path / "spec.yaml", [{"source": "*.txt", "documents": "all", "unreadable_files": "warn"}])
    (warning,) = prepare(spec, tmp_path / "out").warnings()
    assert warning.startswith(f"el_train: left out: {tmp_path / 'a.txt'} is UTF-16LE by its first bytes")
    assert texts_of(tmp_path / "out") == ["δύο"]


def broken_file(path: Path, good: int, bad: int, line: bytes = b'{"text": \n') -> Path:
    write_jsonl(path, [f"κείμενο {number}" for number in range(good)])
    with path.open("ab") as file:
        file.write(line * bad)
    return path


BAD = {
    b'{"text": \n': ("broken JSON", "write one JSON object a line"),
    b'{"body": "x"}\n': ("without the field", "name the texts' field by `text:`"),
    b'{"text": {"el": "x"}}\n': ("no text in the field", "name a field of texts by `text:`"),
    b'{"text": "\xe5\xed"}\n': ("not UTF-8", "if all of it is in an older encoding, convert it, as by `iconv -f ISO"),
    b'{"text": "a\0b"}\n': ("broken JSON", "write one JSON object a line"),
    b'{"text": "\\ud800"}\n': ("a lone surrogate", "mend them"),
}


@pytest.mark.parametrize("line", BAD)
def test_more_than_a_tenth_of_a_file_is_not_lost_unasked(line: bytes, tmp_path: Path) -> None:
    path, (kind, advice) = broken_file(tmp_path / "el.jsonl", 5, 40, line), BAD[line]
    message = f"el_train: 40 of 45 records of {path} have no readable text (40 {kind}; first {path}"
    with pytest.raises(UserError) as refused:
        prepare(write_spec(tmp_path / "spec.yaml", [{"documents": 5, "shortage": "warn"}]), tmp_path / "out")
    assert str(refused.value).startswith(message)
    assert f"); {advice}" in str(refused.value)
    assert str(refused.value).endswith(", or take what is left by `broken_records: any`")
    spec = write_spec(tmp_path / "spec.yaml", [{"documents": 5, "broken_records": "any"}])
    assert entry_of(prepare(spec, tmp_path / "out"))["broken_records"] == {kind: 40}
    assert len(texts_of(tmp_path / "out")) == 5


def test_a_tenth_may_be_lost_of_every_file(tmp_path: Path) -> None:
    broken_file(tmp_path / "a.jsonl", 18, 2)
    spec = write_spec(tmp_path / "spec.yaml", [{"source": "*.jsonl", "documents": 18}])
    (warning,) = prepare(spec, tmp_path / "out").warnings()
    assert warning.startswith("el_train: 2 records have no readable text (2 broken JSON); ")
    write_jsonl(tmp_path / "b.jsonl", map(str, range(1000)))
    worst = broken_file(tmp_path / "c.jsonl", 2, 3)
    broken_file(tmp_path / "d.jsonl", 17, 2)
    with pytest.raises(UserError, match=rf"3 of 5 records of {worst} \(and 1 more files\) have no readable text"):
        prepare(spec, tmp_path / "out", force=True)


def test_empty_texts_and_too_few_are_said(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "el.jsonl", ["ένα", *[" "] * 4])
    (warning,) = prepare(write_spec(tmp_path / "spec.yaml", [{"documents": 1}]), tmp_path / "out").warnings()
    assert warning == "el_train: 4 of 5 records have an empty text in `text: text`"
    assert sampled(tmp_path / "el.jsonl").notes == ("el: 4 of 5 records have an empty text in the field text",)
    with pytest.raises(UserError, match=r"has 1 documents to draw, and 2 were asked for \(passed over: 4 blank\)"):
        prepare(write_spec(tmp_path / "spec.yaml", [{"documents": 2}]), tmp_path / "other")


def test_files_of_a_folder_that_are_not_read_are_said(tmp_path: Path) -> None:
    for name in ("a.txt", "b.csv", "more/c.CSV", "d.json", "README.md", ".hidden.csv", "e.jsonl.bz2"):
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("α\n\n\nβ\n")
    note = f"{tmp_path / 'texts'} has files that are not read (2 .csv, 1 .json, 1 .jsonl.bz2)"
    spec = write_spec(tmp_path / "spec.yaml", [{"source": ["texts", "texts/*.txt"], "documents": 2}])
    for _ in range(2):  # also when all is up to date
        assert prepare(spec, tmp_path / "out").warnings() == [f"el_train: {note}"]
    assert sampled(tmp_path / "texts").notes == (f"el: {note}",)


def test_stray_nul_characters_are_no_wide_encoding(tmp_path: Path) -> None:
    (tmp_path / "el.txt").write_text("ένα\n" * 5 + "δύο δύο\n" * 14 + "a\0b c\n")
    spec = write_spec(tmp_path / "spec.yaml", [{"source": "el.txt", "documents": 2}])
    assert entry_of(prepare(spec, tmp_path / "out"))["broken_records"] == {"not UTF-8": 1}
