"""What holds for every corpus: exact amounts, disjoint data sets, the same draw whatever the files and processes."""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preparation.preparing import entry_of, prepare, texts_of, write_jsonl, write_spec
from neuronmoe_plugins.data import choosing, shards
from neuronmoe_plugins.data.documents import Keys
from neuronmoe_plugins.errors import UserError

TEXTS = st.lists(st.text("αβγ dé\n", max_size=12), max_size=40)
SMALL = settings(max_examples=40, deadline=None)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder of one example."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def distinct(texts: list[str]) -> set[str]:
    return {text.strip() for text in texts} - {""}


@SMALL
@given(texts=TEXTS, documents=st.integers(1, 45), shard_bytes=st.sampled_from([20, 100, shards.SHARD_BYTES]))
def test_documents_are_exact_distinct_and_of_the_source(texts: list[str], documents: int, shard_bytes: int) -> None:
    with folder() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.cut_file, "__defaults__", (shard_bytes,))
        write_jsonl(path / "el.jsonl", texts)
        spec = write_spec(path / "spec.yaml", [{"documents": documents}])
        there = distinct(texts)
        if len(there) < documents:
            with pytest.raises(UserError, match=rf"el_train: the source has {len(there)} documents to draw, and"):
                prepare(spec, path / "out")
            assert not (path / "out/el_train.jsonl").exists()
            return
        prepared = prepare(spec, path / "out")
        drawn = texts_of(path / "out")
        assert len(drawn) == documents == len(set(drawn))
        assert set(drawn) <= there
        entry = entry_of(prepared)
        assert entry["documents"] == documents
        assert entry["characters"] == sum(map(len, drawn))
        assert entry["bytes"] == sum(len(text.encode()) for text in drawn)
        assert entry["records"] == len(texts)
        # Every record is drawn, blank, equal to one before, or left over.
        passed_over = entry["passed_over"]
        assert passed_over.get("blank", 0) == sum(not text.strip() for text in texts)
        assert passed_over.get("equal to another", 0) == sum(bool(text.strip()) for text in texts) - len(there)


@SMALL
@given(texts=TEXTS, amount=st.integers(1, 120))
def test_bytes_are_reached_and_not_without_the_last(texts: list[str], amount: int) -> None:
    with folder() as path:
        write_jsonl(path / "el.jsonl", texts)
        spec = write_spec(path / "spec.yaml", [{"bytes": amount, "shortage": "warn"}])
        prepare(spec, path / "out")
        drawn = texts_of(path / "out") if (path / "out/el_train.jsonl").exists() else []
        sizes = [len(text.encode()) for text in sorted(drawn, key=lambda text: Keys(22).of(text.encode()))]
        if sum(len(text.encode()) for text in distinct(texts)) < amount:
            assert set(drawn) == distinct(texts)
        else:
            assert sum(sizes) >= amount
            assert sum(sizes[:-1]) < amount


@SMALL
@given(texts=TEXTS, cut=st.integers(0, 40), seed=st.integers(0, 3), data=st.data())
def test_neither_files_nor_their_order_change_the_draw(texts: list[str], cut: int, seed: int, data: Any) -> None:
    documents = len(distinct(texts)) // 2
    if not documents:
        return
    shuffled = data.draw(st.permutations(texts))
    with folder() as path:
        write_jsonl(path / "one/el.jsonl", texts)
        write_jsonl(path / "two/b.jsonl", shuffled[:cut])
        write_jsonl(path / "two/a.jsonl", shuffled[cut:])
        for name, source in (("one", "one/el.jsonl"), ("two", "two/*.jsonl")):
            spec = write_spec(path / f"{name}.yaml", [{"documents": documents, "source": source}], seed=seed)
            prepare(spec, path / f"out-{name}")
        assert Counter(texts_of(path / "out-one")) == Counter(texts_of(path / "out-two"))


@SMALL
@given(texts=TEXTS, sizes=st.lists(st.integers(1, 12), min_size=2, max_size=4), batch=st.integers(1, 30))
def test_data_sets_are_disjoint_and_complete_the_small_roles_first(
    texts: list[str], sizes: list[int], batch: int
) -> None:
    roles = ["target", "replay", "analysis", "held-out"]
    with folder() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "MOST_AT_ONCE", batch)
        write_jsonl(path / "el.jsonl", texts)
        datasets = [
            {"name": role, "role": role, "documents": size, "shortage": "warn"}
            for role, size in zip(roles, sizes, strict=False)
        ]
        prepared = prepare(write_spec(path / "spec.yaml", datasets), path / "out")
        written = [entry["name"] for entry in prepared.manifest["datasets"]]
        drawn = [text for name in written for text in texts_of(path / "out", name)]
        assert len(drawn) == len(set(drawn)) == min(sum(sizes), len(distinct(texts)))
        left = len(distinct(texts))
        for role, size in reversed(list(zip(roles, sizes, strict=False))):
            assert entry_of(prepared, role)["documents"] == min(size, left)
            left -= min(size, left)


def test_every_document_is_as_likely(tmp_path: Path) -> None:
    """Over 400 seeds each of 20 documents is drawn with probability 1/4: counts within five standard deviations."""
    texts = [f"κείμενο {number}" for number in range(20)]
    counts = Counter[str]()
    for seed in range(400):
        keys = Keys(seed)
        counts.update(sorted(texts, key=lambda text: keys.of(text.encode()))[:5])
    assert all(abs(counts[text] - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5 for text in texts)
    # And that is what is drawn.
    write_jsonl(tmp_path / "el.jsonl", texts)
    prepare(write_spec(tmp_path / "spec.yaml", [{"documents": 5}], seed=7), tmp_path / "out")
    assert set(texts_of(tmp_path / "out")) == set(sorted(texts, key=lambda text: Keys(7).of(text.encode()))[:5])


def test_texts_stand_in_the_order_of_the_source(tmp_path: Path) -> None:
    texts = [f"{number}" for number in range(500)]
    write_jsonl(tmp_path / "el.jsonl", texts)
    prepare(write_spec(tmp_path / "spec.yaml", [{"documents": 100}]), tmp_path / "out")
    drawn = texts_of(tmp_path / "out")
    assert drawn == sorted(drawn, key=int)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_processes_changes_nothing(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.cut_file, "__defaults__", (4096,))
    generator = random.Random(0)
    texts = ["".join(generator.choices("αβγδ ε.", k=generator.randrange(1, 200))) for _ in range(600)]
    write_jsonl(tmp_path / "el.jsonl", texts)
    datasets = [
        {"documents": 200},
        {"name": "el_analysis", "role": "analysis", "sentences": 40},
        {"name": "el_heldout", "role": "held-out", "bytes": 2000},
    ]
    spec = write_spec(tmp_path / "spec.yaml", datasets, near_duplicates=0.8)
    prepare(spec, tmp_path / "one")
    prepare(spec, tmp_path / "many", workers=workers)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["dataset_info.json", "el_analysis.jsonl", "el_heldout.jsonl", "el_train.jsonl", "manifest.json"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes(), name


def test_unicode_forms_make_texts_equal(tmp_path: Path) -> None:
    texts = ["e\u0301", "\u00e9", " \u00e9\n", "ﬁ", "fi"]
    write_jsonl(tmp_path / "el.jsonl", texts)
    forms = {"NFC": ["\u00e9", "ﬁ", "fi"], "NFKC": ["\u00e9", "fi"], "none": texts[:2] + texts[3:]}
    for form, expected in forms.items():
        spec = write_spec(tmp_path / f"{form}.yaml", [{"documents": "all"}], normalise=form)
        prepare(spec, tmp_path / form)
        assert texts_of(tmp_path / form) == expected
        assert json.loads((tmp_path / form / "manifest.json").read_text())["normalise"] == form
