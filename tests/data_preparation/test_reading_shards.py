"""Files of every kind, whole, cut into shards, broken and truncated."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_preparation.preparing import entry_of, prepare, texts_of, write_jsonl, write_spec
from neuronmoe_plugins.data.reading import Broken, read_shard
from neuronmoe_plugins.data.shards import Shard, cut_file
from neuronmoe_plugins.errors import UserError

TEXTS = [f"κείμενο {number} " + "α" * (number % 7) for number in range(300)]


def lines_of(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "meta": {"n": 1}}, ensure_ascii=False) + "\n" for text in texts).encode()


def write_zstd(path: Path, data: bytes) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(data)


def write_parquet(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path, row_group_size=50)


WRITERS: dict[str, Callable[[Path, list[str]], object]] = {
    ".jsonl": lambda path, texts: path.write_bytes(lines_of(texts)),
    ".jsonl.gz": lambda path, texts: path.write_bytes(gzip.compress(lines_of(texts))),
    ".jsonl.zst": lambda path, texts: write_zstd(path, lines_of(texts)),
    ".txt": lambda path, texts: path.write_text("\n".join(texts)),
    ".txt.gz": lambda path, texts: path.write_bytes(gzip.compress("\n".join(texts).encode())),
    ".parquet": write_parquet,
}


def read(path: Path, shard_bytes: int = 1 << 20) -> list[str | Broken]:
    return [value for shard in cut_file(path, shard_bytes) for _, value in read_shard(shard, "text")]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("shard_bytes", [1, 37, 1000, 1 << 20])
def test_every_record_is_in_one_shard(kind: str, shard_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / f"el{kind}"
    WRITERS[kind](path, TEXTS)
    assert [str(value).rstrip("\n") for value in read(path, shard_bytes)] == TEXTS


@pytest.mark.parametrize("kind", WRITERS)
def test_rows_are_found_again_by_their_numbers(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"el{kind}"
    WRITERS[kind](path, TEXTS)
    for shard in cut_file(path, 1000):
        numbered = dict(read_shard(shard, "text"))
        wanted = set(list(numbered)[::3])
        assert dict(read_shard(shard, "text", wanted.__contains__)) == {row: numbered[row] for row in wanted}


@pytest.mark.parametrize("kind", WRITERS)
def test_all_kinds_give_the_same_draw(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / f"el{kind}", [text.strip() for text in TEXTS])
    prepare(write_spec(tmp_path / "spec.yaml", [{"source": f"el{kind}", "documents": 50}]), tmp_path / "out")
    write_jsonl(tmp_path / "same.jsonl", TEXTS)
    prepare(write_spec(tmp_path / "spec.yaml", [{"source": "same.jsonl", "documents": 50}]), tmp_path / "same")
    assert texts_of(tmp_path / "out") == texts_of(tmp_path / "same")


def test_several_compressed_members_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "el.jsonl.gz").write_bytes(gzip.compress(lines_of(TEXTS[:5])) + gzip.compress(lines_of(TEXTS[5:9])))
    (tmp_path / "el.jsonl.zst").write_bytes(b"")
    write_zstd(tmp_path / "a.zst", lines_of(TEXTS[:5]))
    write_zstd(tmp_path / "b.zst", lines_of(TEXTS[5:9]))
    frames = (tmp_path / "a.zst").read_bytes() + (tmp_path / "b.zst").read_bytes()
    (tmp_path / "el.jsonl.zst").write_bytes(frames)
    assert read(tmp_path / "el.jsonl.gz") == TEXTS[:9] == read(tmp_path / "el.jsonl.zst")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "el.jsonl").write_bytes(b"\xef\xbb\xbf" + lines_of(["ένα", "δύο"]))
    assert read(tmp_path / "el.jsonl", 5) == ["ένα", "δύο"]


BROKEN = {
    b'{"text": "\xff"}': "not UTF-8",
    b'{"text": "half': "broken JSON",
    b"[" * 100_000: "broken JSON",
    b'{"body": "x"}': "without the field",
    b'["text"]': "without the field",
    b"3": "without the field",
    b'{"text": null}': "no text in the field",
    b'{"text": 3}': "no text in the field",
    b'{"text": ["a"]}': "no text in the field",
    b'{"text": "\\ud800"}': "a lone surrogate",
}


@pytest.mark.parametrize("line", BROKEN, ids=lambda line: line[:16].decode(errors="replace"))
def test_broken_records_are_counted_or_refused_with_their_place(line: bytes, tmp_path: Path) -> None:
    before = lines_of(TEXTS[:3])
    (tmp_path / "el.jsonl").write_bytes(before + line + b"\n" + lines_of(TEXTS[3:10]))
    prepared = prepare(write_spec(tmp_path / "spec.yaml", [{"documents": 10}]), tmp_path / "out")
    entry = entry_of(prepared)
    assert entry["broken_records"] == {BROKEN[line]: 1}
    assert entry["records"] == 11
    place = "record 3" if "surrogate" in BROKEN[line] else f"byte {len(before)}"
    assert place in entry["first_broken"]
    (warning,) = prepared.warnings()
    assert warning.startswith(f"el_train: 1 records have no readable text (1 {BROKEN[line]}); ")
    spec = write_spec(tmp_path / "spec.yaml", [{"documents": 10, "broken_records": "error"}])
    with pytest.raises(UserError, match=rf"el\.jsonl.*{place}: {BROKEN[line]}; mend it, or count such records by"):
        prepare(spec, tmp_path / "strict")


def test_a_field_that_no_record_has(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "el.jsonl", TEXTS, field="content")
    with pytest.raises(UserError, match=r"el\.jsonl: no record has the field 'contents'; there are: 'id', 'content'; "):
        prepare(write_spec(tmp_path / "spec.yaml", [{"documents": 1, "text": "contents"}]), tmp_path / "out")
    prepare(write_spec(tmp_path / "spec.yaml", [{"documents": 1, "text": "content"}]), tmp_path / "out")


def test_a_column_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    write_parquet(tmp_path / "el.parquet", TEXTS)
    messages = {"body": "no column 'body'; there are: 'id', 'text'", "id": "column 'id' holds int64"}
    for field, message in messages.items():
        spec = write_spec(tmp_path / "spec.yaml", [{"source": "el.parquet", "documents": 1, "text": field}])
        with pytest.raises(UserError, match=rf"el\.parquet: {message}.*name the texts' column by `text:`"):
            prepare(spec, tmp_path / "out")


def test_values_of_a_column_that_are_no_text(tmp_path: Path) -> None:
    good, bad = "ένα".encode(), b"\xff\xfe"
    values = pa.array([good, None, bad, good], pa.binary()).view(pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 4, values.buffers(), null_count=1)})
    pq.write_table(table, tmp_path / "el.parquet")
    (shard,) = cut_file(tmp_path / "el.parquet")
    kinds = [value if isinstance(value, str) else value.kind for _, value in read_shard(shard, "text")]
    assert kinds == ["ένα", "no text in the field", "not UTF-8", "ένα"]


TRUNCATED = [".jsonl.gz", ".jsonl.zst", ".txt.gz", ".parquet"]


@pytest.mark.parametrize("kind", TRUNCATED)
def test_truncated_files_are_named_with_the_byte(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"el{kind}"
    WRITERS[kind](path, TEXTS)
    size = path.stat().st_size - 200
    path.write_bytes(path.read_bytes()[:size])
    spec = write_spec(tmp_path / "spec.yaml", [{"source": f"el{kind}", "documents": 5}])
    with pytest.raises(UserError, match=rf"el{kind}.* byte {size}.*get the file again, or leave it out") as error:
        prepare(spec, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out/el_train.jsonl").exists()


@pytest.mark.parametrize("kind", TRUNCATED)
def test_truncated_files_are_left_out_whole_if_the_spec_says_so(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"el{kind}"
    WRITERS[kind](path, TEXTS)
    path.write_bytes(path.read_bytes()[:-200])
    write_jsonl(tmp_path / "good.jsonl", ["ένα", "δύο"])
    datasets = [{"source": [f"el{kind}", "good.jsonl"], "documents": "all", "unreadable_files": "warn"}]
    prepared = prepare(write_spec(tmp_path / "spec.yaml", datasets), tmp_path / "out")
    assert texts_of(tmp_path / "out") == ["ένα", "δύο"]
    (warning,) = prepared.warnings()
    assert warning.startswith(f"el_train: left out: {path}")
    first, second = entry_of(prepared)["source"]["files"]
    assert first == {"path": str(path), "unreadable": True}
    assert second["bytes"] == (tmp_path / "good.jsonl").stat().st_size


def test_a_damaged_row_group_leaves_the_whole_file_out(tmp_path: Path) -> None:
    path = tmp_path / "el.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=50, compression="gzip", use_dictionary=False)
    start = pq.ParquetFile(path).metadata.row_group(3).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start + 40 : start + 120] = bytes(80)
    path.write_bytes(data)
    write_jsonl(tmp_path / "good.jsonl", ["ένα"])
    datasets = [{"source": [path.name, "good.jsonl"], "documents": "all", "unreadable_files": "warn"}]
    prepare(write_spec(tmp_path / "spec.yaml", datasets), tmp_path / "out")
    assert texts_of(tmp_path / "out") == ["ένα"]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuronmoe_plugins.data.reading.LONGEST_LINE", 100)
    (tmp_path / "el.txt").write_text("ένα\n" + "α" * 500 + "\nδύο\n" + "β" * 500)
    kinds = [value.kind if isinstance(value, Broken) else value.strip() for value in read(tmp_path / "el.txt")]
    assert kinds == ["ένα", "longer than 256 MiB", "δύο", "longer than 256 MiB"]
    # Cut within the long line, too.
    assert len(read(tmp_path / "el.txt", 60)) == 4


def test_empty_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "texts/more").mkdir(parents=True)
    for name in ("empty.jsonl", "empty.txt.gz", ".hidden.jsonl"):
        (tmp_path / "texts" / name).write_bytes(b"" if name != ".hidden.jsonl" else lines_of(["κρυφό"]))
    write_jsonl(tmp_path / "texts/more/el.jsonl", ["ένα"])
    (tmp_path / "texts/README").write_text("no corpus")
    spec = write_spec(tmp_path / "spec.yaml", [{"source": "texts", "documents": "all"}])
    prepare(spec, tmp_path / "out")
    assert texts_of(tmp_path / "out") == ["ένα"]
    assert cut_file(tmp_path / "texts/empty.jsonl") == []


def test_patterns_without_files_and_files_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "el.csv").write_text("a,b")
    for source, message in {
        "none/*.jsonl": r"el_train: source none/\*\.jsonl: no file in .* matches; kinds: \.jsonl, ",
        "*.csv": r"el_train: source \*\.csv: .*el\.csv is none of \.jsonl, \.txt",
    }.items():
        spec = write_spec(tmp_path / "spec.yaml", [{"source": source, "documents": 1}])
        with pytest.raises(UserError, match=message):
            prepare(spec, tmp_path / "out")


def test_shards_cover_a_plain_file(tmp_path: Path) -> None:
    (tmp_path / "el.txt").write_bytes(b"a" * 100)
    shards = cut_file(tmp_path / "el.txt", 30)
    assert [(shard.start, shard.end) for shard in shards] == [(0, 30), (30, 60), (60, 90), (90, 100)]
    assert all(isinstance(shard, Shard) and shard.size == shard.end - shard.start for shard in shards)
