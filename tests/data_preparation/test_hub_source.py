"""Hub data sets through the real `datasets`, on local folders: streamed no further than needed, and going on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_preparation.preparing import entry_of, prepare, texts_of, write_jsonl, write_spec
from neuronmoe_plugins.data import sources
from neuronmoe_plugins.data.documents import Keys
from neuronmoe_plugins.errors import UserError

datasets = pytest.importorskip("datasets")

TEXTS = [f"γραμμή {number}" for number in range(100)]
CARD = "---\nconfigs:\n- {config_name: el, data_files: [{split: train, path: '*.parquet'}]}\n---\n"


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A data set of one configuration in two shards, with columns as CulturaX has."""
    folder = tmp_path / "CulturaX"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    for number in range(2):
        texts = TEXTS[number * 50 : number * 50 + 50]
        table = pa.table({"text": texts, "timestamp": [""] * 50, "url": [""] * 50, "source": ["mC4"] * 50})
        pq.write_table(table, folder / f"el-{number}.parquet", row_group_size=10)
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK_ROWS", 8)


def spec_of(hub: Path, path: Path, *given: dict[str, Any]) -> Path:
    return write_spec(path, [{"source": f"hub:{hub}", "config": "el", **dataset} for dataset in given])


def test_rows_are_taken_in_their_order_and_no_more_than_needed(hub: Path, tmp_path: Path) -> None:
    prepared = prepare(spec_of(hub, tmp_path / "spec.yaml", {"documents": 20}), tmp_path / "out")
    assert texts_of(tmp_path / "out") == TEXTS[:20]
    source = entry_of(prepared)["source"]
    assert source["hub"] == f"hub:{hub}:el@train"
    assert source["rows"] == 24  # chunks of 8, the first alone and then two
    assert len(source["sha256"]) == 64


def test_texts_of_other_chunks_are_not_drawn_again(hub: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS[:30]}), hub / "el-2.parquet")
    for path in (hub / "el-0.parquet", hub / "el-1.parquet"):
        pq.write_table(pq.read_table(path, columns=["text"]), path)
    prepared = prepare(spec_of(hub, tmp_path / "spec.yaml", {"documents": "all"}), tmp_path / "out")
    assert texts_of(tmp_path / "out") == TEXTS
    assert entry_of(prepared)["passed_over"] == {"equal to another": 30}


def test_a_folder_that_has_changed_is_read_again(hub: Path, tmp_path: Path) -> None:
    spec = spec_of(hub, tmp_path / "spec.yaml", {"documents": 1})
    assert prepare(spec, tmp_path / "out").is_new
    assert not prepare(spec, tmp_path / "out").is_new
    changed = {"text": ["νέα"], "timestamp": [""], "url": [""], "source": ["mC4"]}
    pq.write_table(pa.table(changed), hub / "el-0.parquet")
    with pytest.raises(UserError, match="is there already; replace it by --force"):
        prepare(spec, tmp_path / "out")
    prepare(spec, tmp_path / "out", force=True)
    assert texts_of(tmp_path / "out") == ["νέα"]


def test_with_rows_the_sample_is_drawn_from_these(hub: Path, tmp_path: Path) -> None:
    prepare(spec_of(hub, tmp_path / "spec.yaml", {"documents": 20, "rows": 60}), tmp_path / "out")
    expected = sorted(TEXTS[:60], key=lambda text: Keys(22).of(text.encode()))[:20]
    assert texts_of(tmp_path / "out") == sorted(expected, key=TEXTS.index)


@pytest.mark.parametrize("rows", [None, 40])
def test_later_data_sets_go_on_where_earlier_ones_ended(rows: int | None, hub: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "el.jsonl", TEXTS)
    source = {"source": f"hub:{hub}", "config": "el", **({} if rows is None else {"rows": rows})}
    given = [
        {"documents": 10, **source},
        {"name": "el_local", "documents": 75},
        {"name": "el_analysis", "role": "analysis", "documents": 15, **source},
    ]
    prepare(write_spec(tmp_path / "spec.yaml", given), tmp_path / "out")
    train, local, analysis = (texts_of(tmp_path / "out", dataset.get("name", "el_train")) for dataset in given)
    assert sorted(train + local + analysis) == sorted(TEXTS)
    if rows is None:
        assert (analysis, train) == (TEXTS[:15], TEXTS[15:25])
    else:
        expected = sorted(TEXTS[:rows], key=lambda text: Keys(22).of(text.encode()))
        assert (set(analysis), set(train)) == (set(expected[:15]), set(expected[15:25]))


def test_a_data_set_with_too_few_rows(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="el_train: the source has 100 documents to draw, and 101 were asked for"):
        prepare(spec_of(hub, tmp_path / "spec.yaml", {"documents": 101}), tmp_path / "out")
    prepared = prepare(spec_of(hub, tmp_path / "spec.yaml", {"documents": 101, "shortage": "warn"}), tmp_path / "out")
    assert texts_of(tmp_path / "out") == TEXTS
    assert prepared.warnings() == ["el_train: 100 documents of the 101 asked for"]


def test_a_dropped_connection_ends_cleanly_and_the_same_command_goes_on(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(hub, tmp_path / "spec.yaml", {"documents": 70})
    prepare(spec, tmp_path / "whole")
    read: list[int] = []
    real = datasets.load_dataset

    class Dropping:
        """The stream, which breaks off at its 30th row."""

        def __init__(self, stream: Any, limit: float) -> None:
            self._stream, self._limit = stream, limit

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

        def __iter__(self) -> Iterator[Any]:
            for number, record in enumerate(self._stream):
                if number >= self._limit:
                    raise ConnectionError("connection reset\nby peer")
                read.append(TEXTS.index(record["text"]))
                yield record

    limits = iter([30, float("inf")])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: Dropping(real(*args, **kwargs), next(limits)))
    with pytest.raises(UserError, match=r"beyond row 24: connection reset by peer; the same command goes on from"):
        prepare(spec, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".data.partial"]
    assert read == list(range(30))
    prepare(spec, tmp_path / "out")
    assert read[30] == 24
    for name in ("el_train.jsonl", "manifest.json", "dataset_info.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_schemas_of_slimpajama_and_skypile(tmp_path: Path) -> None:
    """Nested files of JSON lines, compressed by zstd with a record beside the text, or plain with the text alone."""
    slim, sky = tmp_path / "SlimPajama-627B", tmp_path / "SkyPile-150B"
    (slim / "train/chunk1").mkdir(parents=True)
    (sky / "data").mkdir(parents=True)
    records = [{"text": text, "meta": {"redpajama_set_name": "RedPajamaC4"}} for text in TEXTS]
    with pa.CompressedOutputStream(str(slim / "train/chunk1/example_train_0.jsonl.zst"), "zstd") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records).encode())
    write_jsonl(sky / "data/2020-40_zh_head_0000.jsonl", [f"第{number}行" for number in range(50)])
    given = [
        {"name": "en_replay", "language": "en", "role": "replay", "source": f"hub:{slim}", "documents": 30},
        {"name": "zh_replay", "language": "zh", "role": "replay", "source": f"hub:{sky}", "documents": 30},
    ]
    prepare(write_spec(tmp_path / "spec.yaml", given), tmp_path / "out")
    assert texts_of(tmp_path / "out", "en_replay") == TEXTS[:30]
    assert texts_of(tmp_path / "out", "zh_replay") == [f"第{number}行" for number in range(30)]


def test_compressed_rows_without_the_package_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_args: Any, **_kwargs: Any) -> None:
        raise ValueError("Compression type zstd not supported")

    monkeypatch.setattr(datasets, "load_dataset", load)
    spec = write_spec(tmp_path / "spec.yaml", [{"source": "hub:a/b", "documents": 1}])
    with pytest.raises(UserError, match=r"zstd not supported; pip install 'neuronmoe-plugins\[data\]'; then the same"):
        prepare(spec, tmp_path / "out")


def test_missing_fields_configurations_and_data_sets(hub: Path, tmp_path: Path) -> None:
    wrong = {
        "no field 'body'; there are: 'text', 'timestamp', 'url', 'source'; name it by `text:`": {"text": "body"},
        "cannot be read beyond row 0: .*'tr'": {"config": "tr"},
        "cannot be read beyond row 0: .*dev": {"split": "dev"},
        "none:el@train does not exist: there is no such folder": {"source": f"hub:{hub}-none"},
    }
    for message, dataset in wrong.items():
        spec = spec_of(hub, tmp_path / "spec.yaml", {"documents": 1, **dataset})
        with pytest.raises(UserError, match=message) as error:
            prepare(spec, tmp_path / "out")
        assert "\n" not in str(error.value)


def test_a_folder_is_relative_to_the_spec(hub: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "spec.yaml", [{"source": f"hub:{hub.relative_to(tmp_path)}/.", "documents": 5}])
    assert len(texts_of(prepare(spec, tmp_path / "out") and tmp_path / "out")) == 5


def test_rows_that_are_no_text_are_counted_or_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    records: list[Any] = ["ένα", None, "ένα", " ", "δύο", "\ud800"]
    (folder / "el.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in records[:5]))
    asked = {"source": f"hub:{folder}", "documents": "all"}
    with pytest.raises(
        UserError, match=r"1 of 5 records of hub:.* have no readable text \(1 no text in the field; first"
    ):
        prepare(write_spec(tmp_path / "spec.yaml", [asked]), tmp_path / "out")
    spec = write_spec(tmp_path / "spec.yaml", [{**asked, "broken_records": "any"}])
    entry = entry_of(prepare(spec, tmp_path / "out"))
    assert texts_of(tmp_path / "out") == ["ένα", "δύο"]
    assert entry["broken_records"] == {"no text in the field": 1}
    assert entry["passed_over"] == {"blank": 1, "equal to another": 1}
